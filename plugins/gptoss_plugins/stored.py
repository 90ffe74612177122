"""The weights of all experts, and the format that they are stored in, which is a constant of the kernels.

gptoss_export/model/expert_weights.py has the layout of each format. The kernels know them by FORMAT:

    MXFP4  codes, of which GROUP = 32 share a scale. They are interleaved (gptoss_export/model/mxfp4.py)
    NF4    codes into a table, of which GROUP share a float32
    PLAIN  the weights as they are, in the dtype of the model. There are no scales, and GROUP is 0

A kernel has a parameter for each of weights, scales and table. What a format does not have is not read, and the weights
stand in its place: a compiled program passes a pointer for each parameter. So the code for MXFP4 is what it would be
without the other formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl

from gptoss_export.kernels.launch_config import shape_of
from gptoss_export.model.expert_weights import is_mxfp4

MXFP4, NF4, PLAIN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_NAMES = {MXFP4.value: "", NF4.value: "_nf4", PLAIN.value: "_plain"}


class Stored(NamedTuple):
    """A format.

    form   MXFP4, NF4 or PLAIN, as a number
    group  weights that share a scale; 0: there are no scales
    """

    form: int
    group: int

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels take."""
        return {"FORMAT": self.form, "GROUP": self.group}

    def space_name(self, name: str) -> str:
        """The name of the launch configs of kernels that are called `name` for MXFP4: each format has its own."""
        return name + _NAMES[self.form]

    def shape(self, dtype: torch.dtype, **sizes: int) -> dict[str, int | str]:
        """`ConfigSpace.shape` of kernels for this format."""
        return shape_of(dtype, **sizes, **({"group": self.group} if self.form == NF4.value else {}))


def stored_as(scales: torch.Tensor | None, columns: int) -> Stored:
    """The format of matrices with so many columns, by their scales."""
    if scales is None:
        return Stored(PLAIN.value, 0)
    return Stored((MXFP4 if is_mxfp4(scales) else NF4).value, columns // scales.size(2))


@dataclass(frozen=True)
class Experts:
    """The weights of all experts and the numbers of SwiGLU, as gptoss::experts takes them, but for the codes of MXFP4,
    which are interleaved."""

    gate_up_weight: torch.Tensor
    gate_up_scales: torch.Tensor | None
    gate_up_table: torch.Tensor | None
    gate_up_bias: torch.Tensor  # [E, 2 I]
    down_weight: torch.Tensor
    down_scales: torch.Tensor | None
    down_table: torch.Tensor | None
    down_bias: torch.Tensor  # [E, H]
    alpha: float
    limit: float

    @property
    def count(self) -> int:
        return self.down_bias.size(0)

    @property
    def inter(self) -> int:
        return self.gate_up_bias.size(1) // 2

    @property
    def gate_up(self) -> tuple[torch.Tensor, ...]:
        """Weight, scales, table and bias of the first matrix, as the kernels take them."""
        return *as_pointers(self.gate_up_weight, self.gate_up_scales, self.gate_up_table), self.gate_up_bias

    @property
    def down(self) -> tuple[torch.Tensor, ...]:
        """The same of the second one."""
        return *as_pointers(self.down_weight, self.down_scales, self.down_table), self.down_bias

    @property
    def stored(self) -> Stored:
        return stored_as(self.down_scales, self.inter)


def as_pointers(
    weight: torch.Tensor, scales: torch.Tensor | None, table: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, scales and table of a matrix, as the kernels take them: the weights in place of what is missing."""
    return weight, weight if scales is None else scales, weight if table is None else table
