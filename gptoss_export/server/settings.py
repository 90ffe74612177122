"""What an operator chooses for a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

LOCALHOST = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServerSettings:
    """How a server treats its clients.

    api_keys         a request must bring one of them, unless it is for /health or the page; none: it needs no key
    max_new_tokens   most tokens of an answer, whether its request asks for a number or not; None: as many as the
                     context has room for
    max_requests     answers that are generated or wait at a time, each of `n` counted; more get 429
    max_body         bytes of a request's body; more get 413
    queue_seconds    how long a request waits for its first token; then it gets 503
    request_seconds  how long a request takes at most; then it gets 504, or its stream ends with an error
    drain_seconds    how long requests may go on after the signal to end
    hosts            what a request's Host header may name, without its port; empty: anything
    origins          web pages of other origins that may use the server, such as "https://example.org"; "*": all
    """

    api_keys: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    max_requests: int = 512
    max_body: int = 16 * 10**6
    queue_seconds: float = 120.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a server that is bound to an IP address."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def hosts_of(host: str, address: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The `hosts` of a server that was told to listen at `host` and is bound to the IP address `address`, where the
    operator allows some more names.

    A web page can give its own name the address of this machine (DNS rebinding). Its requests then look to the browser
    as if they went to the page's own server, and their Host header has the page's name. So a server that only this
    machine reaches takes only names of this machine. One that others reach can have any name, unless some are given.
    """
    if is_loopback(address):
        own = [f"[{name}]" if ":" in name else name for name in (host, address)]
        allowed = (*LOCALHOST, *own, *allowed)
    return tuple(dict.fromkeys(name.lower() for name in allowed))
