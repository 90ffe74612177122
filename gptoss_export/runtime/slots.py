"""What the KV cache of each slot holds, and which call owns the slots.

A call that changes slots begins a new epoch. A generator that was started in an earlier one (a stream, the blocks of
`prefill_logits`) finds out when it goes on.

While tokens are generated, the next step may be launched before the host knows the tokens of this one. Its sequences
are one token longer than the caller knows: they are speculated, until their tokens are known or rolled back.

A slot has an adapter, or none, that its sequence is computed with. It is chosen while the slot is empty.

Where the cache is made of pages (page_tables.py), `reserve` comes before tokens are appended, and the tokens are told
when they are known, so that another sequence with the same beginning can share their pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import OutOfPagesError, RunError
from .adapter_memory import AdapterMemory, LoadedAdapter
from .page_tables import PageTables


class Slots:
    """The sequences of all slots.

    max_context  tokens that a sequence can hold
    pages        None: each slot has a cache for the whole context
    adapters     None: the artifact has no adapter slots
    """

    def __init__(
        self, count: int, max_context: int, pages: PageTables | None = None, adapters: AdapterMemory | None = None
    ) -> None:
        self.max_context = max_context if pages is None else min(max_context, pages.capacity)
        self.pages = pages
        self.epoch = 0
        self.speculated: set[int] = set()
        self._built_for = max_context
        self._lengths = [0] * count
        self._adapter_memory = adapters
        self._adapters: list[LoadedAdapter | None] = [None] * count

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def limit(self) -> str:
        """The option that `max_context` comes from."""
        return "--max-context of the build" if self.max_context == self._built_for else "--kv-memory of the load"

    def length(self, slot: int) -> int:
        """Tokens of a slot's sequence, without a speculated one. Raises RunError for a slot that does not exist."""
        return self._lengths[self._checked(slot)] - (slot in self.speculated)

    def lengths(self) -> list[int]:
        """Tokens of all sequences, speculated ones included."""
        return list(self._lengths)

    def begin_call(self) -> int:
        """Take the slots over: roll back what an unfinished stream speculated. Returns the new epoch."""
        self.epoch += 1
        self.rollback(self.speculated)
        return self.epoch

    def check_epoch(self, epoch: int) -> None:
        """Raise RunError where another call has taken the slots over since `epoch` began."""
        if epoch != self.epoch:
            raise RunError("another call used this runner in the meantime; finish a stream before the next call")

    def reserve(self, slot: int, count: int) -> None:
        """Make room for the next `count` tokens of a slot. Raises OutOfPagesError where there is none now."""
        if self.pages is not None:
            self.pages.reserve(slot, self._lengths[slot], count)

    def extend(self, slot: int, count: int) -> None:
        """`count` tokens were appended to a slot's sequence."""
        self._lengths[slot] += count

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """These tokens were appended to a slot's sequence."""
        self.tell(slot, self._lengths[slot], tokens)
        self.extend(slot, len(tokens))

    def tell(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """The tokens of a slot's sequence from position `start` on, which were or will be appended."""
        if self.pages is not None:
            self.pages.tell(slot, start, tokens)

    def speculate(self, slots: Iterable[int]) -> None:
        """The steps of these slots, which are extended already, were launched before the tokens were known, and no
        others."""
        self.speculated = set(slots)

    def rollback(self, slots: Iterable[int]) -> None:
        """Forget the speculated token of these slots: the step that appended it was one too many."""
        dropped = set(slots)
        for slot in dropped:
            self._lengths[slot] -= 1
        self.speculated = self.speculated - dropped

    def clear(self, slot: int) -> None:
        """Forget a slot's sequence."""
        if self.pages is not None:
            self.pages.release(self._checked(slot), self._lengths[slot])
        self._lengths[self._checked(slot)] = 0

    def adapt(self, slot: int, adapter: LoadedAdapter | None) -> None:
        """Let the next sequence of an empty slot use an adapter, until another one is chosen."""
        if self._adapters[self._checked(slot)] is adapter:
            return
        assert self._adapter_memory is not None  # else there is no adapter
        self._adapter_memory.choose(slot, adapter)
        self._adapters[slot] = adapter
        if self.pages is not None:
            self.pages.begin(slot, b"" if adapter is None else adapter.key)

    def using(self, adapter: LoadedAdapter) -> list[int]:
        """The slots whose sequences use an adapter."""
        return [slot for slot, length in enumerate(self._lengths) if length and self._adapters[slot] is adapter]

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:
        """Let an empty slot begin with what the cache knows of the beginning of `tokens`; how many tokens that is. At
        least the last token is left to compute."""
        if self.pages is not None:
            self._lengths[slot] = self.pages.reuse(slot, tokens)
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Shorten a slot's sequence to its first `length` tokens.

        Raises RunError where sliding layers have lost pages that the next token has to see: they give pages back when
        those leave the window, and other sequences may have taken them.
        """
        held = self._lengths[self._checked(slot)]
        if not 0 <= length <= held:
            raise RunError(f"truncate to {length}: the sequence has {held} tokens; expected 0 to {held}")
        if self.pages is not None and not self.pages.truncate(slot, held, length):
            raise RunError(
                f"truncate to {length}: the pages of sliding layers before that were given to other sequences; reset "
                f"the slot and prefill the {length} tokens again"
            )
        self._lengths[slot] = length

    def fork(self, source: int, target: int) -> None:
        """Let a slot hold the sequence of another one, whatever it held before. Their pages are shared until one of
        them changes a page. Raises RunError where the cache has no pages, and for a slot onto itself."""
        self._checked(source), self._checked(target)
        if self.pages is None:
            raise RunError("fork: this artifact has a cache of fixed size for each slot, expected one of pages")
        if source == target:
            raise RunError(f"fork: found slot {source} twice, expected two slots")
        self.clear(target)
        self.adapt(target, self._adapters[source])
        self.pages.fork(source, target, self._lengths[source])
        self._lengths[target] = self._lengths[source]

    def check_room(self, slot: int, count: int, fresh: bool = False) -> None:
        """Raise RunError where `count` tokens do not fit behind a slot's sequence, or (`fresh`) in place of it."""
        length = 0 if fresh else self.length(slot)
        adapter = self._adapters[self._checked(slot)]
        if adapter is not None and not adapter.loaded:
            raise RunError(f"slot {slot}: its adapter {adapter.name!r} was unloaded; reset the slot")
        if length + count > self.max_context:
            raise RunError(
                f"slot {slot}: {length} tokens and {count} more exceed the context of {self.max_context} ({self.limit})"
            )
        if self.pages is not None:
            pages = self.pages
            lacking = pages.lacking_anew(slot, count) if fresh else pages.lacking(slot, length, count)
            if lacking:
                raise OutOfPagesError(
                    f"slot {slot}: {length} tokens and {count} more need {lacking} more pages than the "
                    f"{pages.pool.available} of the KV cache that are free; reset other slots, or load with more "
                    "--kv-memory"
                )

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < len(self._lengths):
            raise RunError(f"slot {slot}: expected 0 to {len(self._lengths) - 1} (--max-batch of the build)")
        return slot
