"""Which pages of the pool are free, by how many sequences the others are held, and which pages hold a known prefix.

It counts, and knows no tensors. A page that nobody holds is free, but keeps its contents until it is taken. If it has a
key, which stands for the tokens that it holds and for all tokens before them, it can be found again by the key. Free
pages without a key are taken first, then those that were released longest ago.

Page 0 is scratch (model/kv_cache.py): nobody gets it.
"""

from __future__ import annotations

from collections import OrderedDict

from ..errors import OutOfPagesError


class PagePool:
    """`count` pages, with the scratch page."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._found: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, count))  # the next one to take comes first

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free)

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return self.count - 1 - len(self._free)

    def holders(self, page: int) -> int:
        """How many sequences hold a page."""
        return self._holders[page]

    def take(self) -> int:
        """A page for one sequence. What it held is lost. Raises OutOfPagesError where no page is free."""
        if not self._free:
            raise OutOfPagesError(f"the KV cache has no free page: all {self.count - 1} are in use")
        page, _ = self._free.popitem(last=False)
        self.forget(page)
        self._holders[page] = 1
        return page

    def share(self, page: int) -> int:
        """Hold a page once more; returns it. It may have been free."""
        self._free.pop(page, None)
        self._holders[page] += 1
        return page

    def release(self, page: int) -> None:
        """Hold a page once less."""
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free[page] = None
            if self._keys[page] is None:
                self._free.move_to_end(page, last=False)

    def name(self, page: int, key: bytes) -> None:
        """Let a page be found by a key. Where another page has the key already, this one stays without."""
        if self._keys[page] is None and key not in self._found:
            self._keys[page], self._found[key] = key, page

    def find(self, key: bytes) -> int | None:
        """The page of a key, in use or free."""
        return self._found.get(key)

    def forget(self, page: int) -> None:
        """A page changes: it is found no more."""
        if (key := self._keys[page]) is not None:
            self._keys[page] = None
            del self._found[key]
