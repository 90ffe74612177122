"""The pages of each slot's sequence: which it holds, which it gives back, which it shares with others.

A sequence has a list of pages for full layers and one for sliding layers (model/kv_cache.py). Before tokens are
appended, `reserve` makes the pages that they go to:

  - pages of sliding layers that no later token sees are given back
  - a page that others hold too is copied before it is written (copy on write)
  - what is missing is taken from the pool

Pages whose tokens are all known get a key: a hash of their tokens and of all tokens before. A new sequence that begins
with the same tokens shares those pages (`reuse`), if it is computed with the same weights: sequences of different
adapters have different keys. It needs the full layers' pages of the prefix, and the sliding
layers' pages of the window before its end. Pages that were given back serve as long as nobody has taken them.

No tensors are here: what changes in the tables and pages of the device goes to a `PagedMemory`.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import OutOfPagesError
from ..model.config import FULL, SLIDING
from ..model.kv_cache import SCRATCH, pages_for
from .executor import PagedMemory, PageLayout, TableEntry
from .page_pool import PagePool


@dataclass
class SequencePages:
    """The pages of one sequence.

    held    by kind of layer: the pages of its positions, in order; SCRATCH where one was given back
    tokens  of the sequence, as far as they are known; may be longer or shorter than what is in the cache
    hashes  of the tokens up to the end of each page
    named   pages from the first on whose keys the pool has
    salt    what its hashes begin with: sequences of different salts share no pages
    """

    held: dict[str, list[int]]
    tokens: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    named: int = 0
    salt: bytes = b""

    def in_use(self) -> list[int]:
        """All pages that it holds, of both kinds."""
        return [page for pages in self.held.values() for page in pages if page != SCRATCH]


class PageTables:
    """The pages of `slots` sequences."""

    def __init__(self, slots: int, memory: PagedMemory) -> None:
        self._memory, self._layout = memory, memory.layout
        self.pool = PagePool(self._layout.pages)
        self._kinds, self._page = _kinds(self._layout), self._layout.page
        self._sequences = [self._empty() for _ in range(slots)]

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that the pool holds, if it holds no other."""
        most, sliding = self._layout.pages - 1, _sliding_pages(self._layout)
        if FULL not in self._kinds:
            return sys.maxsize if most >= sliding else most * self._page
        if SLIDING not in self._kinds or most > 2 * sliding:
            return (most - sliding) * self._page
        return most // 2 * self._page  # so short that sliding layers give nothing back

    @staticmethod
    def needed_by(layout: PageLayout, count: int) -> int:
        """Pages that a sequence of `count` tokens takes at most, if it shares none."""
        pages = pages_for(count, layout.page)
        return (pages if layout.full else 0) + min(pages, _sliding_pages(layout))

    def lacking(self, slot: int, length: int, count: int) -> int:
        """How many pages the pool has too few for `count` tokens more behind the `length` tokens of a sequence, at
        most; 0 where they fit."""
        first = self._window(length).start if SLIDING in self._kinds else 0
        end = self._count(length + count)
        total = (end if FULL in self._kinds else 0) + min(end - first, _sliding_pages(self._layout))
        there = 0
        for kind, pages in self._sequences[slot].held.items():
            if kind == FULL:
                there += len(pages) - len(self._shared(pages, length // self._page))  # those are copied
            else:  # what sliding layers share stays with the others when it is given back
                there += sum(page != SCRATCH and self.pool.holders(page) == 1 for page in pages)
        return max(0, total - there - self.pool.available)

    def lacking_anew(self, slot: int, count: int) -> int:
        """How many pages the pool has too few for `count` tokens in place of a slot's sequence, at most."""
        own = sum(self.pool.holders(page) == 1 for page in self._sequences[slot].in_use())
        return max(0, self.needed_by(self._layout, count) - own - self.pool.available)

    def promised(self, slot: int, count: int) -> int:
        """Pages that a slot's sequence will take, at most, until it has `count` tokens."""
        return max(0, self.needed_by(self._layout, count) - len(self._sequences[slot].in_use()))

    def reserve(self, slot: int, length: int, count: int) -> None:
        """Make the pages that the next `count` tokens of a sequence of `length` tokens go to.

        Raises OutOfPagesError where the pool has too few. The sequence stays as it is then, and may try again.
        """
        sequence = self._sequences[slot]
        first, end = length // self._page, self._count(length + count)
        self._name(slot, length)
        if SLIDING in self._kinds:
            self._give_back(sequence, length)
        copied = [(kind, at) for kind in self._kinds for at in self._shared(sequence.held[kind], first)]
        missing = sum(max(0, end - len(sequence.held[kind])) for kind in self._kinds)
        if len(copied) + missing > self.pool.available:
            raise OutOfPagesError(
                f"slot {slot}: {count} more tokens need {len(copied) + missing} pages, and {self.pool.available} of "
                f"{self.pool.count - 1} are free"
            )
        entries: list[TableEntry] = []
        copies: list[tuple[int, int]] = []
        for kind, at in copied:
            pages = sequence.held[kind]
            source, pages[at] = pages[at], self.pool.take()
            copies.append((source, pages[at]))
            self.pool.release(source)
            entries.append(TableEntry(kind, slot, at, pages[at]))
        for kind in self._kinds:
            pages = sequence.held[kind]
            for page in pages[first:]:
                self.pool.forget(page)
            while len(pages) < end:
                pages.append(self.pool.take())
                entries.append(TableEntry(kind, slot, len(pages) - 1, pages[-1]))
        sequence.named = min(sequence.named, first)
        if copies:
            self._memory.copy_pages(copies)
        if entries:
            self._memory.set_pages(entries)

    def tell(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """The tokens of a sequence from `start` on."""
        sequence = self._sequences[slot]
        if start <= len(sequence.tokens):
            sequence.tokens[start:] = tokens
            del sequence.hashes[start // self._page :]
            sequence.named = min(sequence.named, len(sequence.hashes))

    def release(self, slot: int, length: int) -> None:
        """Give back all pages of a sequence that has `length` tokens."""
        self._name(slot, length)
        for pages in self._sequences[slot].held.values():
            for page in reversed(pages):  # so that the beginning of a prefix is taken last
                if page != SCRATCH:
                    self.pool.release(page)
        self._sequences[slot] = self._empty(self._sequences[slot].salt)

    def begin(self, slot: int, salt: bytes) -> None:
        """Give the sequences of an empty slot another salt."""
        self._sequences[slot] = self._empty(salt)

    def truncate(self, slot: int, held: int, length: int) -> bool:
        """Shorten a sequence of `held` tokens to `length`. False where sliding layers have lost pages that the next
        token sees; nothing changes then."""
        sequence = self._sequences[slot]
        self._name(slot, held)
        back: dict[int, int] = {}
        for at in self._window(length) if SLIDING in self._kinds else ():
            if sequence.held[SLIDING][at] == SCRATCH:
                page = self.pool.find(_key(SLIDING, sequence.hashes[at])) if at < len(sequence.hashes) else None
                if page is None:
                    return False
                back[at] = page
        for at, page in back.items():
            sequence.held[SLIDING][at] = self.pool.share(page)
        for pages in sequence.held.values():
            for page in pages[self._count(length) :]:
                if page != SCRATCH:
                    self.pool.release(page)
            del pages[self._count(length) :]
        self.tell(slot, length, ())
        if back:
            self._memory.set_pages([TableEntry(SLIDING, slot, at, page) for at, page in back.items()])
        return True

    def fork(self, source: int, target: int, length: int) -> None:
        """Let an empty slot share the pages of a sequence that has `length` tokens."""
        given = self._sequences[source]
        count = self._count(length)
        held = {kind: pages[:count] for kind, pages in given.held.items()}
        known = min(length, len(given.tokens))
        forked = SequencePages(held, given.tokens[:known], given.hashes[: known // self._page], salt=given.salt)
        for page in forked.in_use():
            self.pool.share(page)
        self._sequences[target] = forked
        self._memory.set_pages(list(self._entries(target)))

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:
        """Give an empty slot the pages of the longest known prefix of `tokens`, without the last token: what comes
        after it has to be computed. Returns how many tokens are in the cache now."""
        hashes: list[bytes] = []
        salt = self._sequences[slot].salt
        for digest in _hashes(tokens, [], self._page, (len(tokens) - 1) // self._page, salt):
            if FULL in self._kinds and self.pool.find(_key(FULL, digest)) is None:
                break
            hashes.append(digest)
        while hashes and not self._has_window(hashes):
            hashes.pop()
        count = len(hashes)
        held: dict[str, list[int]] = {kind: [SCRATCH] * count for kind in self._kinds}
        wanted = [(FULL, at) for at in range(count)] if FULL in self._kinds else []
        wanted += [(SLIDING, at) for at in self._window(count * self._page)] if SLIDING in self._kinds else []
        for kind, at in wanted:
            page = self.pool.find(_key(kind, hashes[at]))
            assert page is not None
            held[kind][at] = self.pool.share(page)
        self._sequences[slot] = SequencePages(held, list(tokens[: count * self._page]), hashes, count, salt)
        if count:
            self._memory.set_pages(list(self._entries(slot)))
        return count * self._page

    def pages(self, slot: int) -> dict[str, list[int]]:
        """The pages that a slot holds, by kind of layer; SCRATCH where it has given one back."""
        return {kind: list(pages) for kind, pages in self._sequences[slot].held.items()}

    def _empty(self, salt: bytes = b"") -> SequencePages:
        return SequencePages({kind: [] for kind in self._kinds}, salt=salt)

    def _count(self, positions: int) -> int:
        return pages_for(positions, self._page)

    def _window(self, length: int) -> range:
        """The pages of a sliding layer that the token at `length` sees, without its own."""
        return range(max(0, length - self._layout.window + 1) // self._page, self._count(length))

    def _has_window(self, hashes: Sequence[bytes]) -> bool:
        """Whether the pool has the sliding layers' pages that the token after a prefix sees."""
        if SLIDING not in self._kinds:
            return True
        window = self._window(len(hashes) * self._page)
        return all(self.pool.find(_key(SLIDING, hashes[at])) is not None for at in window)

    def _shared(self, pages: Sequence[int], first: int) -> list[int]:
        """Which pages from `first` on others hold too."""
        return [at for at in range(first, len(pages)) if self.pool.holders(pages[at]) > 1]

    def _give_back(self, sequence: SequencePages, length: int) -> None:
        """Release the sliding layers' pages that neither the token at `length` sees nor one after it."""
        pages = sequence.held[SLIDING]
        for at in range(min(self._window(length).start, len(pages)) - 1, -1, -1):
            if pages[at] == SCRATCH:
                break
            self.pool.release(pages[at])
            pages[at] = SCRATCH

    def _name(self, slot: int, length: int) -> None:
        """Let the pages of a sequence be found whose tokens are all known and in the cache."""
        sequence = self._sequences[slot]
        count = min(length, len(sequence.tokens)) // self._page
        if count <= sequence.named:
            return
        sequence.hashes += list(_hashes(sequence.tokens, sequence.hashes, self._page, count, sequence.salt))
        for kind in self._kinds:
            for at in range(sequence.named, count):
                if (page := sequence.held[kind][at]) != SCRATCH:
                    self.pool.name(page, _key(kind, sequence.hashes[at]))
        sequence.named = count

    def _entries(self, slot: int) -> Iterator[TableEntry]:
        for kind, pages in self._sequences[slot].held.items():
            yield from (TableEntry(kind, slot, at, page) for at, page in enumerate(pages) if page != SCRATCH)


def _kinds(layout: PageLayout) -> list[str]:
    return [kind for kind, there in ((FULL, layout.full), (SLIDING, layout.window > 0)) if there]


def _sliding_pages(layout: PageLayout) -> int:
    """The most pages that sliding layers of one sequence hold: those that a chunk writes and sees."""
    positions = layout.window - 1 + layout.chunk
    return (positions + 2 * (layout.page - 1)) // layout.page if layout.window else 0


def _hashes(tokens: Sequence[int], before: Sequence[bytes], page: int, count: int, salt: bytes) -> Iterator[bytes]:
    """The hashes of pages len(before) to count - 1 of a sequence."""
    digest = before[-1] if before else salt
    for at in range(len(before), count):
        text = array("q", tokens[at * page : (at + 1) * page]).tobytes()
        digest = hashlib.blake2b(digest + text, digest_size=16).digest()
        yield digest


def _key(kind: str, digest: bytes) -> bytes:
    return kind.encode() + digest
