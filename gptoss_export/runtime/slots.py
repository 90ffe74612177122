"""What each slot's KV cache holds: how long its sequence is, and how far back it can be cut."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RunError


@dataclass
class Slot:
    """One sequence. `written` counts the positions ever written since the last reset."""

    length: int = 0
    written: int = 0

    def extend(self, count: int) -> None:
        self.length += count
        self.written = max(self.written, self.length)


def check_truncate(slot: Slot, length: int, window: int, ring: int) -> None:
    """Raise RunError where the sequence cannot be cut to `length`.

    `ring` is the rows of the sliding layers' caches, 0 where no layer slides. They hold the last `ring`
    positions that were written; the next query, at `length`, sees `window` positions, itself included.
    """
    if not 0 <= length <= slot.length:
        raise RunError(f"truncate to {length}: the sequence has {slot.length} tokens; expected 0 to that")
    oldest = max(0, slot.written - ring) if ring else 0
    if length and max(0, length - window + 1) < oldest:
        raise RunError(
            f"truncate to {length}: sliding layers hold positions {oldest} to {slot.written - 1} only, and "
            f"the next token needs {max(0, length - window + 1)}; reset and prefill the {length} tokens again"
        )
