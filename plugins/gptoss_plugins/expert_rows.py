"""Rows that are sorted by expert, in blocks of one expert each: what the grouped products of a training step share.

The rows of an expert follow each other, so a block is told by its first row and its end. Each program finds those of
its block from `ends` by itself: it counts the blocks of each expert and adds them up. That takes some hundred cycles of
a program that multiplies for tens of thousands, and no kernel has to run before.

The rows behind the last end have blocks too, whose results are zeros. So the blocks are those of one more expert, and
`grouping.blocks_for` has their number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .stored import PLAIN


@triton.jit
def rows_of_block(start, end, block, ROWS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """The expert of a block, its first row, and where the rows of that expert end.

    start and end [C] are those of all experts, and 0 behind EXPERTS. The expert is EXPERTS or more for rows behind the
    last end of all ROWS. A block that is not needed begins at its end or behind it.

    The kernel loads start and end itself. Where a function is given a tensor and returns a place to write to, torch
    takes that tensor for written, and copies it before each launch.
    """
    number = tl.arange(0, start.shape[0])
    upto = tl.cumsum(tl.cdiv(end - start, BLOCK), 0)  # blocks of this expert and of those before it
    before = upto <= block
    expert = tl.sum(before.to(tl.int32), 0)
    place = (block - tl.max(tl.where(before, upto, 0), 0)) * BLOCK
    mine, known, last = number == expert, expert < EXPERTS, tl.max(end, 0)
    begin = tl.where(known, tl.sum(tl.where(mine, start, 0), 0), last) + place
    stop = tl.where(known, tl.sum(tl.where(mine, end, 0), 0), ROWS)
    return expert, begin, stop


@triton.jit
def rows_of_expert(ends, expert):
    """The first row of an expert and where its rows end."""
    return tl.load(ends + expert - 1, mask=expert > 0, other=0), tl.load(ends + expert)


@triton.jit
def half_of(rows, BLOCK: tl.constexpr, HALVES: tl.constexpr):
    """1 where so many rows are half a block or less, and HALVES is 2 (grouping.halves_for); otherwise 0."""
    half = 0
    if HALVES == 2:
        half = (rows <= BLOCK // 2).to(tl.int32)
    return half


@triton.jit
def matrix_of_expert(weight, scales, expert, SIZE: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Weights and scales of an expert, of all experts' matrices with SIZE elements each."""
    if FORMAT == PLAIN:
        weight += expert.to(tl.int64) * SIZE
    else:
        weight += expert.to(tl.int64) * (SIZE // 2)
        scales += expert.to(tl.int64) * (SIZE // GROUP)
    return weight, scales


@triton.jit
def store_zeros(out, line, stop, column, WIDTH: tl.constexpr):
    """Writes 0 to columns [C] of the lines [L] of out [.., WIDTH] that are before `stop`."""
    cells = line.to(tl.int64)[:, None] * WIDTH + column[None, :]
    nothing = tl.zeros([line.shape[0], column.shape[0]], out.dtype.element_ty)
    tl.store(out + cells, nothing, mask=(line < stop)[:, None] & (column < WIDTH)[None, :])
