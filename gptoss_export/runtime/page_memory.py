"""The pages of the KV cache and the tables of pages, as tensors that compiled programs are bound to.

The pool's size is chosen here, when an artifact is loaded. A full layer and a sliding layer are bound to the same
tensors where the model has both (model/kv_cache.py), so that a page serves either kind.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from ..artifact.manifest import Manifest
from ..artifact.programs import kv_cache_names, kv_inputs, page_table_names
from ..errors import UsageError
from ..model.config import FULL
from ..model.dtypes import ITEM_SIZES
from ..model.kv_cache import PAGE, page_bytes, pool_tensor, pool_tensors
from .executor import PagedMemory, PageLayout, TableEntry
from .page_tables import PageTables
from .tensors import Tensor, Tensors

_ALIGNED = 4  # cells of a table: compiled CUDA code copies an input that is not aligned to 16 bytes at every call
_LEFT = 0.9  # the share of the GPU's free memory that a pool takes at most: chunks need memory too


class PageMemory(PagedMemory):
    """The tensors of a pool with `pages` pages, with the scratch page.

    bound  by the names of the programs' inputs: tables and caches
    """

    def __init__(self, manifest: Manifest, tensors: Tensors, pages: int) -> None:
        config, sizes = manifest.model, manifest.sizes
        names = page_table_names(config)
        # What pages hold before they are written is never read.
        shapes = {item.name: item.sizes(pages) for item in kv_inputs(config, sizes, manifest.dtype)}
        shape = shapes[kv_cache_names(config)[0][0]]
        self._tensors = tensors
        self._pool = [[tensors.empty(shape, manifest.dtype) for _ in range(2)] for _ in range(pool_tensors(config))]
        slots, self._width = sizes.table
        cells = slots * self._width
        each = -(-cells // _ALIGNED) * _ALIGNED
        self._tables = tensors.zeros((len(names) * each,), "int32")
        self._begin = {kind: index * each for index, kind in enumerate(names)}
        self.bound: dict[str, Tensor] = {
            name: self._tables[self._begin[kind] : self._begin[kind] + cells].view(sizes.table)
            for kind, name in names.items()
        }
        for layer, pair in enumerate(kv_cache_names(config)):
            self.bound |= zip(pair, self._pool[pool_tensor(config, layer)], strict=True)
        self._layout = _layout(manifest, pages)

    @property
    def layout(self) -> PageLayout:
        return self._layout

    @property
    def nbytes(self) -> int:
        """Memory of the pool."""
        return sum(tensor.nbytes for pair in self._pool for tensor in pair)

    def set_pages(self, entries: Sequence[TableEntry]) -> None:
        pages = {self._begin[entry.kind] + entry.slot * self._width + entry.at: entry.page for entry in entries}
        with self._tensors.working():
            for cells in _consecutive(sorted(pages)):
                numbers = array("i", (pages[cell] for cell in cells))
                self._tensors.write(self._tables[cells[0] : cells[-1] + 1], numbers)

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        with self._tensors.working():
            for pair in self._pool:
                for tensor in pair:
                    for source, target in copies:
                        tensor[target].copy_(tensor[source])


def allocate_pages(
    manifest: Manifest, tensors: Tensors, kv_memory: int | None, agreed: Callable[[int], int] = int
) -> PageMemory:
    """The pool of a loaded artifact, whose weights and code are on the device already.

    kv_memory  its bytes. None: as many pages as all slots can use, or most of what the GPU has left if that is less
    agreed     the pages that this rank has room for, to the pages that all ranks have room for

    Raises UsageError where not even a short sequence fits.
    """
    each = page_bytes(manifest.model, ITEM_SIZES[manifest.dtype])
    if kv_memory is None:
        pages = _useful_pages(manifest)
        if tensors.on_gpu:
            pages = min(pages, int(_LEFT * tensors.free_memory()) // each)
    else:
        pages = kv_memory // each
    least = 1 + len(set(manifest.model.layer_types))
    if pages < least:
        found = f"{pages * each:,} bytes of the GPU's memory are left" if kv_memory is None else f"{kv_memory:,} bytes"
        raise UsageError(f"KV memory: found {found}, expected at least {least * each:,} for the shortest sequence")
    return PageMemory(manifest, tensors, agreed(pages))


def _layout(manifest: Manifest, pages: int) -> PageLayout:
    config = manifest.model
    window = max(config.window(layer) for layer in range(config.num_hidden_layers))
    return PageLayout(PAGE, pages, FULL in config.layer_types, window, max(manifest.sizes.prefill_chunks))


def _useful_pages(manifest: Manifest) -> int:
    """Pages that the longest sequences take in all slots, and the scratch page."""
    return 1 + manifest.sizes.max_batch * PageTables.needed_by(_layout(manifest, 1), manifest.sizes.max_context)


def _consecutive(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Ascending numbers, in runs without gaps."""
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        yield [number for _, number in run]
