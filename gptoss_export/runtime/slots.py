"""What the KV cache of each slot holds, and which call owns the slots.

A call that changes slots begins a new epoch. A generator that was started in an earlier one (a stream, the blocks of
`prefill_logits`) finds out when it goes on.

While tokens are generated, the next step may be launched before the host knows the tokens of this one. Its sequences
are one token longer than the caller knows: they are speculated, until their tokens are known or rolled back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import RunError


@dataclass
class Slot:
    """One sequence: its length, and how many positions were written since the slot was last emptied."""

    length: int = 0
    written: int = 0


class Slots:
    """The sequences of all slots.

    max_context  tokens that a sequence can hold
    window       positions that a sliding layer's query sees, itself included
    ring_rows    positions that the caches of sliding layers keep; 0: all
    """

    def __init__(self, count: int, max_context: int, window: int, ring_rows: int) -> None:
        self.max_context = max_context
        self.epoch = 0
        self.speculated: set[int] = set()
        self._window, self._ring_rows = window, ring_rows
        self._slots = [Slot() for _ in range(count)]

    def __len__(self) -> int:
        return len(self._slots)

    def length(self, slot: int) -> int:
        """Tokens of a slot's sequence, without a speculated one. Raises RunError for a slot that does not exist."""
        return self._slot(slot).length - (slot in self.speculated)

    def lengths(self) -> list[int]:
        """Tokens of all sequences, speculated ones included."""
        return [slot.length for slot in self._slots]

    def begin_call(self) -> int:
        """Take the slots over: roll back what an unfinished stream speculated. Returns the new epoch."""
        self.epoch += 1
        self.rollback(self.speculated)
        return self.epoch

    def check_epoch(self, epoch: int) -> None:
        """Raise RunError where another call has taken the slots over since `epoch` began."""
        if epoch != self.epoch:
            raise RunError("another call used this runner in the meantime; finish a stream before the next call")

    def extend(self, slot: int, count: int) -> None:
        """`count` tokens were appended to a slot's sequence."""
        held = self._slots[slot]
        held.length += count
        held.written = max(held.written, held.length)

    def speculate(self, slots: Iterable[int]) -> None:
        """The steps of these slots, which are extended already, were launched before the tokens were known, and no
        others."""
        self.speculated = set(slots)

    def rollback(self, slots: Iterable[int]) -> None:
        """Forget the speculated token of these slots: the step that appended it was one too many."""
        dropped = set(slots)
        for slot in dropped:
            self._slots[slot].length -= 1
        self.speculated = self.speculated - dropped

    def clear(self, slot: int) -> None:
        """Forget a slot's sequence."""
        self._slot(slot)
        self._slots[slot] = Slot()

    def truncate(self, slot: int, length: int) -> None:
        """Shorten a slot's sequence to its first `length` tokens.

        Raises RunError where sliding layers have overwritten positions that the next token has to see: their caches
        hold the last `ring_rows` positions that were written, and the next query, at `length`, sees `window` of them.
        """
        held = self._slot(slot)
        if not 0 <= length <= held.length:
            raise RunError(f"truncate to {length}: the sequence has {held.length} tokens; expected 0 to {held.length}")
        oldest = max(0, held.written - self._ring_rows) if self._ring_rows else 0
        needed = max(0, length - self._window + 1)
        if length and needed < oldest:
            raise RunError(
                f"truncate to {length}: sliding layers hold positions {oldest} to {held.written - 1} only, and the "
                f"next token needs position {needed}; reset the slot and prefill the {length} tokens again"
            )
        held.length = length
        if length == 0:
            self._slots[slot] = Slot()

    def check_room(self, slot: int, count: int, fresh: bool = False) -> None:
        """Raise RunError where `count` tokens do not fit behind a slot's sequence, or (`fresh`) in place of it."""
        length = 0 if fresh else self.length(slot)
        self._slot(slot)
        if length + count > self.max_context:
            raise RunError(
                f"slot {slot}: {length} tokens and {count} more exceed the context of {self.max_context} "
                "(--max-context of the build)"
            )

    def _slot(self, slot: int) -> Slot:
        if not 0 <= slot < len(self._slots):
            raise RunError(f"slot {slot}: expected 0 to {len(self._slots) - 1} (--max-batch of the build)")
        return self._slots[slot]
