"""What goes between an ingress and a replica: a request, and its response in parts."""

from __future__ import annotations

from dataclasses import dataclass

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Call:
    """A request of a client, complete.

    beginnings  hashes of its prompt's beginning, shortest first, each with the number of characters that it covers
    avoided     replicas that have been lost on the way to an answer
    place       of the replica that is to answer, where all are sorted by their names; None: the best one
    """

    method: str
    path: str
    query: bytes = b""
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    client: tuple[str, int] | None = None
    beginnings: tuple[tuple[int, bytes], ...] = ()
    avoided: tuple[str, ...] = ()
    place: int | None = None


@dataclass(frozen=True)
class Part:
    """A part of a response.

    status   of HTTP, in the part with which the response begins
    last     whether the response is complete
    replica  who answers, in the first part, which comes at once; a part without anything says that the replica is alive
    """

    status: int | None = None
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    last: bool = False
    replica: str | None = None


ALIVE = Part()


@dataclass(frozen=True)
class Figures:
    """A replica's figures. `text` is in Prometheus' text format."""

    replica: str
    node: str
    pid: int
    text: str
