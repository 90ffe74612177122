"""The second product of the experts for many pairs, and the sum over the choices of a token and over the ranks.

experts_many.py says how pairs are grouped and in which order the programs run. The sum is a kernel of its own: there
are no atomic additions, so that equal inputs have equal results.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent_launch import let_next_start, wait_for_previous, wait_then_let_next_start
from .grouping import is_half
from .rank_cells import sum_over_ranks
from .stored import PLAIN
from .stored_product import stored_product


@triton.jit
def _down_tile(
    act,
    pair_of_row,
    weight,
    scales,
    table,
    bias,
    out,
    row,
    slot,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Results `row` [ROWS] of the pairs of rows `slot` [M] of act, which are of one expert, whose weights are given."""
    pair = tl.load(pair_of_row + slot)
    result = stored_product(
        act,
        slot,
        pair >= 0,
        weight,
        scales,
        table,
        tl.minimum(row, HIDDEN - 1),
        INTER,
        ACT_STRIDE,
        WORDS,
        FORMAT,
        GROUP,
        PAIRED,
        ASSEMBLY,
        PRECISION,
        ASYNC,
        WIDE,
    )
    result += tl.load(bias + row, mask=row < HIDDEN, other=0.0).to(tl.float32)[:, None]
    cells = pair.to(tl.int64)[None, :] * HIDDEN + row[:, None]
    tl.store(out + cells, result.to(out.dtype.element_ty), mask=(pair >= 0)[None, :] & (row < HIDDEN)[:, None])


@triton.jit
def down_many_pdl(
    act,
    expert_of_block,
    pair_of_row,
    weight,
    scales,
    table,
    bias,
    out,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ROWS results of each pair of one block: out [pairs, H]."""
    tile, block = tl.program_id(0) + let_next_start(EARLY), tl.program_id(1)
    zero = wait_for_previous(EARLY)
    act += zero
    expert_of_block += zero
    pair_of_row += zero
    out += zero
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    if FORMAT == PLAIN:
        weight += expert * (HIDDEN * INTER)
    else:
        weight += expert * (HIDDEN * INTER // 2)
        scales += expert * (HIDDEN * INTER // GROUP)
    bias += expert * HIDDEN
    half = is_half(pair_of_row, block, BLOCK_M, HALVES)
    for halves in tl.static_range(HALVES):
        if half == halves:
            _down_tile(
                act,
                pair_of_row,
                weight,
                scales,
                table,
                bias,
                out,
                tile * ROWS + tl.arange(0, ROWS),
                block * BLOCK_M + tl.arange(0, BLOCK_M // (1 + halves)),
                HIDDEN,
                INTER,
                ACT_STRIDE,
                WORDS,
                FORMAT,
                GROUP,
                PAIRED,
                ASSEMBLY,
                PRECISION,
                ASYNC,
                WIDE,
            )


@triton.jit
def sum_many_pdl(
    out,
    chosen,
    shares,
    residual,
    places,
    sums,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RANKS: tl.constexpr,
    BOX: tl.constexpr,
    CLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """WIDTH results of one token [T, H]: the sum over its choices and over the ranks, plus the residual."""
    zero = wait_then_let_next_start(EARLY)
    out += zero
    chosen += zero
    shares += zero
    residual += zero
    sums += zero
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < HIDDEN
    before = tl.zeros([WIDTH], tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    if RESIDUAL:
        before += tl.load(residual + token * HIDDEN + column, mask=inside, other=0.0)
    for choice in tl.static_range(CHOICES):
        pair = token * CHOICES + choice
        # Loaded whether it was written or not: so the loads of all choices wait together.
        result = tl.load(out + pair * HIDDEN + column, mask=inside, other=0.0).to(tl.float32)
        share = tl.load(shares + pair)
        total += tl.where(tl.load(chosen + pair) >= 0, share * result, 0.0)
    cell = token * HIDDEN + column
    if RANKS > 1:
        total = sum_over_ranks(total, cell, inside, places, BOX, zero, RANKS, CLOCK)
    tl.store(sums + cell, before + total, mask=inside)
