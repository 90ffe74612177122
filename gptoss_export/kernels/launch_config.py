"""Launch configs: how many rows, warps, stages and so on the launches of one op call use.

A launch config has a part for each launch that can be configured, and each part is a NamedTuple of whole numbers,
such as `{"logits": Rows(rows=16, length=1024, warps=4)}`. Which one is fast depends on the shapes and on the GPU. So
it is no constant of a kernel: a kernel op takes the arguments of its gptoss:: op by name and two more:

    config  list[int]   the numbers of the launch config, part after part
    arch    str         the arch that it is compiled for, such as sm_90

`kernel.Kernel` supplies both: a tuned config where one was measured for these shapes, the kernel's own guess otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ..model.dtypes import dtype_name

LaunchConfig: TypeAlias = Mapping[str, Any]  # part -> a NamedTuple of its numbers
Options: TypeAlias = Mapping[str, Mapping[str, Sequence[int]]]  # part -> number -> the values that tuning tries


@dataclass(frozen=True)
class ConfigSpace:
    """The launch configs that one op call can have.

    name     the kernels that are launched; ops that launch the same kernels share their tuned configs
    shape    everything that the best config depends on, apart from the arch
    scaled   the keys of `shape` that may be up to twice or half of those of a tuned config
    default  the kernel's own guess
    options  what tuning tries
    """

    name: str
    shape: Mapping[str, int | str]
    scaled: tuple[str, ...]
    default: LaunchConfig
    options: Options

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{name} {value}' for name, value in self.shape.items())})"


def shape_of(dtype: torch.dtype, **sizes: int) -> dict[str, int | str]:
    """`ConfigSpace.shape` of sizes and a dtype."""
    return {**sizes, "dtype": dtype_name(dtype)}


def flatten(config: LaunchConfig) -> list[int]:
    """The numbers of a launch config, as a kernel op takes them."""
    return [number for part in config.values() for number in part]


def unflatten(numbers: Sequence[int], *kinds: Any) -> list[Any]:
    """The parts of flat `numbers`, of the given NamedTuple classes, in order."""
    parts, start = [], 0
    for kind in kinds:
        end = start + len(kind._fields)
        parts.append(kind(*numbers[start:end]))
        start = end
    return parts
