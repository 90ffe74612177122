"""gptoss_triton::grouped_outer: `gptoss::grouped_outer` for NVIDIA GPUs, in Triton.

The contract is in gptoss_export/model/ops/grouped_outer.py. A program has a tile [rows, columns] of the sum of one
expert, and adds the outer products of the expert's rows in their order, some rows at a time. So equal inputs have equal
sums, and an expert without rows has zeros. Rows of other experts are not read.

One of M and K is a low rank, so the time is that of reading the other side once. The tile has all of the low rank, and
so little of the other side that there are programs for all SMs: 32 experts and 2,880 columns are 736 programs of 128.
The launch config is by reasoning, and has not been measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, shape_of, unflatten
from gptoss_export.model.ops import Arguments

from .dense_tiles import dot_precision
from .expert_rows import rows_of_expert


class Outer(NamedTuple):
    """Launch config: rows (of M) and columns (of K) of a tile, lines that are added at a time, warps, stages."""

    rows: int
    columns: int
    lines: int
    warps: int
    stages: int


@triton.jit
def _grouped_outer(
    a,
    b,
    ends,
    out,
    M: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LINES: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """ROWS times COLUMNS of the sum of one expert: out [E, M, K]. WIDE: a or b has 2^31 elements or more."""
    expert = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, stop = rows_of_expert(ends, expert)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, stop, LINES):
        line = start + tl.arange(0, LINES)
        there = (line < stop)[:, None]
        if WIDE:
            line = line.to(tl.int64)
        left = tl.load(a + line[:, None] * M + row[None, :], mask=there & (row < M)[None, :], other=0.0)
        right = tl.load(b + line[:, None] * K + column[None, :], mask=there & (column < K)[None, :], other=0.0)
        acc = tl.dot(tl.trans(left), right, acc, input_precision=PRECISION)
    cells = (expert.to(tl.int64) * M + row)[:, None] * K + column[None, :]
    tl.store(out + cells, acc, mask=(row < M)[:, None] & (column < K)[None, :])


@triton_op("gptoss_triton::grouped_outer", mutates_args={})
def grouped_outer(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor, config: list[int], arch: str) -> torch.Tensor:
    """`gptoss::grouped_outer`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    (tile,) = unflatten(config, Outer)
    (experts,), left, right = ends.shape, a.size(1), b.size(1)
    out = a.new_empty((experts, left, right), dtype=torch.float32)
    wrap_triton(_grouped_outer)[(triton.cdiv(left, tile.rows), triton.cdiv(right, tile.columns), experts)](
        a.contiguous(),
        b.contiguous(),
        ends,
        out,
        M=left,
        K=right,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        LINES=tile.lines,
        PRECISION=dot_precision(a.dtype),
        WIDE=max(a.numel(), b.numel()) >= 2**31,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call."""
    a, b, (experts,) = arguments["a"], arguments["b"], arguments["ends"].shape
    (lines, left), right, dtype = a.shape, b.size(1), a.dtype
    exact = dtype == torch.float32  # no tensor cores: products run on FMA units and take their operands from registers
    most = 32 if exact else 128
    rows, columns = (min(most, max(16, triton.next_power_of_2(size))) for size in (left, right))
    tile = Outer(rows=rows, columns=columns, lines=32 if exact else 64, warps=4, stages=2 if exact else 4)
    return ConfigSpace(
        name="grouped_outer",
        shape=shape_of(dtype, lines=lines, experts=experts, left=left, right=right),
        scaled=("lines",),
        default={"outer": tile},
        options={
            "outer": {
                "rows": (16, 32, 64, 128),
                "columns": (16, 32, 64, 128, 256),
                "lines": (32, 64, 128),
                "warps": (2, 4, 8),
                "stages": (2, 3, 4),
            }
        },
    )


KERNEL = Kernel(grouped_outer, config_space)
