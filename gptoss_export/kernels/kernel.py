"""What a package offers for an op: kernels, and the ways in which their launches can be cut.

A launch is cut into programs, tiles, warps and stages. Which cut is fast depends on the shapes and on the GPU, so it is no
constant of a kernel. An op of kernels that can be cut takes the contract's arguments of its op, and two more:

    tiles  list[int]   the cut: the values of `Cut.default`, part after part
    arch   str         what it is compiled for, such as sm_90

`Kernel.bind` supplies them: the cut from a table that `gptoss-export tune` has written (tables.py), or the kernel's own guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from .tuned_configs import CutTable

Tiles = Mapping[str, tuple[int, ...]]  # part of a cut -> a NamedTuple of its numbers
Options = Mapping[str, Mapping[str, Sequence[int]]]  # part -> number -> what tuning tries for it


@dataclass(frozen=True)
class Cut:
    """How the launches of one op are cut, for arguments of one shape.

    name     the kernels that are launched; ops that launch the same ones share their entries in a table
    shape    all that the cut depends on, beside the arch
    sizes    of `shape`, the numbers for which an entry of a near one does
    default  the cut where no table has one
    options  what tuning tries
    """

    name: str
    shape: Mapping[str, int | str]
    sizes: tuple[str, ...]
    default: Tiles
    options: Options

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{name} {value}' for name, value in self.shape.items())})"


@dataclass(frozen=True)
class Kernel:
    """An op's kernels.

    op   gptoss_triton::<name>, a torch.library.triton_op
    cut  the op's arguments, which may be fakes, to their Cut; None where nothing of it can be cut. Without it the op takes
         the contract's arguments alone
    """

    op: Callable[..., Any]
    cut: Callable[..., Cut | None] | None = None

    def bind(self, arch: str, tables: Sequence[CutTable] = ()) -> Callable[..., Any]:
        """The op with the contract's arguments, compiled for `arch` and cut as the first of `tables` that knows says."""
        return self._bound(self.op, arch, tables)

    def launches(self, arch: str, tables: Sequence[CutTable] = ()) -> Callable[..., Any]:
        """The same as the launches that it is made of, which stay in a traced graph one by one."""
        # A triton_op hides its launches from export; the function it was made of is its own fake implementation.
        return self._bound(self.op._abstract_fn, arch, tables)

    def _bound(self, function: Callable[..., Any], arch: str, tables: Sequence[CutTable]) -> Callable[..., Any]:
        if self.cut is None:
            return function

        def bound(*arguments: Any) -> Any:
            cut = self.cut(*arguments)
            found = (table.find(cut) for table in tables if table.arch == arch) if cut else ()
            tiles = next((tiles for tiles in found if tiles), cut.default if cut else {})
            return function(*arguments, flat(tiles), arch)

        return bound


def shape_of(dtype: torch.dtype, **sizes: int) -> dict[str, int | str]:
    """`Cut.shape` of sizes and a dtype."""
    return {**sizes, "dtype": str(dtype).removeprefix("torch.")}


def flat(tiles: Tiles) -> list[int]:
    """As a kernel op takes them."""
    return [number for part in tiles.values() for number in part]


def parts(tiles: Sequence[int], *kinds: type[NamedTuple]) -> list[Any]:
    """The parts of flat `tiles`, in the order of their `kinds`."""
    made, at = [], 0
    for kind in kinds:
        made.append(kind(*tiles[at : at + len(kind._fields)]))
        at += len(kind._fields)
    return made
