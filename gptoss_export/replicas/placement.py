"""Which replica is best for a prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import count

Beginnings = Sequence[tuple[int, bytes]]

_REQUEST = 2048  # characters of a known beginning that are worth as much as one request less in the queue
_HOLDERS = 4  # replicas that are remembered for a beginning


class Placement:
    """Remembers who was sent which beginnings of prompts, and ranks replicas.

    A replica that knows the beginning of a prompt saves its prefill, and one with few requests answers sooner. Both are
    counted in characters: of the beginning that is known, less 2,048 for each request that the replica has. About 500
    tokens are prefilled in the time that a request of a full replica waits for its turn.

    capacity  most beginnings; those that were not used for the longest time are forgotten
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._last: dict[str, int] = {}
        self._turns = count()

    def ranked(self, beginnings: Beginnings, loads: Mapping[str, float]) -> list[str]:
        """Replicas, the best first. Of equal ones, the one that was the best the longest time ago.

        loads  requests of each replica
        """
        known = self._known(beginnings)

        def cost(replica: str) -> tuple[float, int]:
            return _REQUEST * loads[replica] - known.get(replica, 0), self._last.get(replica, -1)

        best, *others = sorted(loads, key=cost)
        self._last = {replica: turn for replica, turn in self._last.items() if replica in loads}
        self._last[best] = next(self._turns)
        return [best, *others]

    def remember(self, beginnings: Beginnings, replica: str) -> None:
        """A replica was sent a prompt."""
        for _, digest in reversed(beginnings):  # the longest is forgotten first: without it, the others are of use
            others = (holder for holder in self._holders.pop(digest, ()) if holder != replica)
            self._holders[digest] = (replica, *others)[:_HOLDERS]
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def __len__(self) -> int:
        return len(self._holders)

    def _known(self, beginnings: Beginnings) -> dict[str, int]:
        """How much of a prompt each replica knows."""
        known: dict[str, int] = {}
        for length, digest in beginnings:
            holders = self._holders.get(digest)
            if holders is None:
                break  # nobody knows more
            known.update(dict.fromkeys(holders, length))
        return known
