"""The first product of the experts for many pairs, with SwiGLU: act, in the order that the second product takes.

That is the order of the words (mxfp4_words.py), or the natural one for plain matrices, where NEXT_WORDS is 1.

experts_many.py says how pairs are grouped and in which order the programs run. A tile takes its rows in an order in
which a thread has the gate and the up of the same result: rows r and r + 8 of the 16 rows that a warp multiplies. Then
SwiGLU moves no data between threads, and neighbouring threads have results whose places in act are neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent_launch import wait_then_let_next_start
from .grouping import is_half
from .mxfp4 import swiglu
from .mxfp4_words import word_place
from .stored import PLAIN
from .stored_product import stored_product


@triton.jit
def _gate_up_tile(
    x,
    pair_of_row,
    weight,
    scales,
    table,
    bias,
    act,
    tile,
    slot,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    NEXT_WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Rows `slot` [M] of act, from tile number `tile` of the rows of one expert, whose weights are given."""
    M: tl.constexpr = slot.shape[0]
    pair = tl.load(pair_of_row + slot)
    there = pair >= 0

    # The tile makes 8 codes of NEW words of act. Of 16 rows, 8 are gates and 8 the ups of the same results. The results
    # are in the order [code, word], and in the natural one where that is the order of act.
    NEW: tl.constexpr = ROWS // 16
    r = tl.arange(0, ROWS)
    made = r // 16 * 8 + r % 8
    if NEXT_WORDS == 1:
        row = 2 * (tile * (8 * NEW) + made) + r // 8 % 2
    else:
        row = 2 * (8 * (tile * NEW + made % NEW) + made // NEW) + r // 8 % 2
    hidden = stored_product(
        x,
        tl.maximum(pair, 0) // CHOICES,
        there,
        weight,
        scales,
        table,
        tl.minimum(row, 2 * INTER - 1),
        HIDDEN,
        X_STRIDE,
        WORDS,
        FORMAT,
        GROUP,
        PAIRED,
        ASSEMBLY,
        PRECISION,
        ASYNC,
        WIDE,
    )
    added = tl.load(bias + row, mask=row < 2 * INTER, other=0.0).to(tl.float32)
    hidden = (hidden + added[:, None]).reshape(ROWS // 16, 2, 8, M).permute(0, 2, 3, 1)

    result = swiglu(hidden, ALPHA, LIMIT)
    if NEXT_WORDS == 1:
        place = tile * (8 * NEW) + tl.arange(0, 8 * NEW)
        cells = slot.to(tl.int64)[None, :] * ACT_STRIDE + place[:, None]
        result = result.reshape(8 * NEW, M)
        tl.store(act + cells, result.to(act.dtype.element_ty), mask=(place < INTER)[:, None] & there[None, :])
    else:
        # Words that are neighbours in act are a dimension of their own, so that Triton sees that they are.
        RUN: tl.constexpr = min(NEW, NEXT_WORDS)
        result = result.reshape(8, NEW // RUN, RUN, M)
        code = tl.arange(0, 8)[:, None, None, None]
        run = tile * NEW + tl.arange(0, NEW // RUN)[None, :, None, None] * RUN
        word = tl.arange(0, RUN)[None, None, :, None]
        place = run // NEXT_WORDS * (8 * NEXT_WORDS) + code * NEXT_WORDS + run % NEXT_WORDS + word
        cells = slot.to(tl.int64)[None, None, None, :] * ACT_STRIDE + place
        inside = run + word < INTER // 8
        tl.store(act + cells, result.to(act.dtype.element_ty), mask=inside & there[None, None, None, :])
    if ACT_STRIDE > INTER:  # noqa: SIM102  (Triton 3.6 has no `and` of a constant and a value)
        if tile == tl.num_programs(0) - 1:
            padding = INTER + tl.arange(0, 8 * NEXT_WORDS)
            rest = slot.to(tl.int64)[:, None] * ACT_STRIDE + word_place(padding, NEXT_WORDS)[None, :]
            nothing = tl.zeros([M, 8 * NEXT_WORDS], act.dtype.element_ty)
            tl.store(act + rest, nothing, mask=there[:, None] & (padding < ACT_STRIDE)[None, :])


@triton.jit
def gate_up_many_pdl(
    x,
    expert_of_block,
    pair_of_row,
    weight,
    scales,
    table,
    bias,
    act,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    NEXT_WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """act [rows of the blocks, I] of one block, from ROWS of the 2 I rows of its expert."""
    zero = wait_then_let_next_start(EARLY)
    x += zero
    expert_of_block += zero
    pair_of_row += zero
    act += zero
    tile, block = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    if FORMAT == PLAIN:
        weight += expert * (2 * INTER * HIDDEN)
    else:
        weight += expert * (INTER * HIDDEN)
        scales += expert * (2 * INTER * HIDDEN // GROUP)
    bias += expert * (2 * INTER)
    half = is_half(pair_of_row, block, BLOCK_M, HALVES)
    for halves in tl.static_range(HALVES):
        if half == halves:
            _gate_up_tile(
                x,
                pair_of_row,
                weight,
                scales,
                table,
                bias,
                act,
                tile,
                block * BLOCK_M + tl.arange(0, BLOCK_M // (1 + halves)),
                CHOICES,
                HIDDEN,
                INTER,
                ALPHA,
                LIMIT,
                ROWS,
                WORDS,
                X_STRIDE,
                ACT_STRIDE,
                NEXT_WORDS,
                FORMAT,
                GROUP,
                PAIRED,
                ASSEMBLY,
                PRECISION,
                ASYNC,
                WIDE,
            )
