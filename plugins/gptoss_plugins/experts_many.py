"""Experts for many pairs (a batch or a chunk): grouped products on tensor cores.

A *pair* is one (token, choice): pair = token * K + choice. With few pairs an expert, the time is that of reading and
unpacking the weights. With many, it is that of the products. In both cases the weights are the left operand, which
stays in the registers where it was unpacked, and the pairs of one expert are the columns (mxfp4_words.py). Before the
products the pairs are grouped in blocks of BLOCK_M, each of one expert (router_groups.py, or grouping.py where the
experts are given).

    _gate_up_many_pdl   ROWS of the 2 I rows for one block: act, in the order of the words.
    _down_many_pdl      ROWS of the H rows for one block: results of each pair, float32.
    _sum_many_pdl       the sum over the choices of a token, times the routing weights, plus the residual. There are
                        no atomic additions, so that equal inputs have equal results.

Programs of one block follow each other, so that its x stays in the L2 cache, and after it come the other blocks of the
same expert, whose weights do. Blocks that are not needed have expert -1 and return at once: how many are needed is
known on the device alone.

The last block of an expert may be filled to a half or less. Then its programs compute a half.

A tile of gate_up takes its rows in an order in which a thread has the gate and the up of the same result: rows r and
r + 8 of the 16 rows that a warp multiplies. Then SwiGLU moves no data between threads, and neighbouring threads have
results whose places in act are neighbours.

The results of a chunk are made and summed COLUMNS at a time: those of all pairs in float32 would take a third of the
memory of a chunk.

Limits: H and I are multiples of 32, as in MXFP4. In float16 the weights must fit float16, since they are rounded to the
dtype of x. Those of mxfp4_words.py for bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.launch_config import ConfigSpace, shape_of

from .arch import has_dependent_launch, shared_memory
from .dense_tiles import MOST_TOKENS
from .dependent_launch import let_next_start, wait_for_previous, wait_then_let_next_start
from .grouping import Grouped
from .mxfp4 import Experts, mask_and, product_constants, swiglu
from .mxfp4_words import padded, word_place, words_product

LARGE_BLOCKS = 160 * 1024  # bytes of shared memory that blocks of 256 pairs need
COLUMNS = 1536  # a multiple of every ROWS
FEWEST = tl.constexpr(16)  # pairs of a half: a tile of 8 has products of another shape, whose bits are others


class Block(NamedTuple):
    """Launch config of both products: the pairs of a block."""

    pairs: int


class Tile(NamedTuple):
    """Launch config of one of the two products.

    rows    rows of the weights that a program has
    words   words of a row at a time
    warps   of a program
    stages  of the software pipeline over a row
    """

    rows: int
    words: int
    warps: int
    stages: int


def many_pairs_space(
    tokens: int, choices: int, experts: int, hidden: int, inter: int, dtype: torch.dtype, arch: str
) -> ConfigSpace:
    """The launch configs of the kernels for tokens * choices pairs. By default a block has all pairs of most experts,
    or, where those are many, as many as the shared memory allows."""
    average = tokens * choices / experts
    pairs = next((block for block, most in ((8, 5), (16, 10), (32, 24), (64, 160)) if average <= most), 256)
    if pairs == 256 and shared_memory(arch) < LARGE_BLOCKS:
        pairs = 128
    if dtype == torch.float32:  # no tensor cores: products run on FMA units and take their operands from registers
        pairs = min(pairs, 64)
        gate_up = down = Tile(rows=32, words=4, warps=4, stages=2)
    else:
        gate_up, down = _TILES[pairs]
    return ConfigSpace(
        name="experts_many",
        shape=shape_of(dtype, tokens=tokens, choices=choices, experts=experts, hidden=hidden, inter=inter),
        scaled=("tokens",),
        default={"block": Block(pairs), "gate_up": gate_up, "down": down},
        options={"block": {"pairs": (8, 16, 32, 64, 128, 256)}, "gate_up": _TILE, "down": _TILE},
    )


# Of gate_up and of down, by the pairs of a block.
_TILES = {
    8: (Tile(rows=64, words=32, warps=4, stages=3), Tile(rows=64, words=32, warps=4, stages=3)),
    16: (Tile(rows=64, words=16, warps=4, stages=4), Tile(rows=128, words=32, warps=8, stages=3)),
    32: (Tile(rows=128, words=16, warps=4, stages=3), Tile(rows=128, words=16, warps=4, stages=3)),
    64: (Tile(rows=128, words=16, warps=4, stages=3), Tile(rows=128, words=16, warps=8, stages=3)),
    128: (Tile(rows=128, words=8, warps=8, stages=3), Tile(rows=128, words=8, warps=8, stages=3)),
    256: (Tile(rows=128, words=8, warps=8, stages=4), Tile(rows=128, words=16, warps=8, stages=3)),
}
_TILE = {"rows": (64, 128, 256), "words": (8, 16, 32, 64), "warps": (2, 4, 8), "stages": (2, 3, 4)}


@triton.jit
def _is_half(pair_of_row, block, BLOCK_M: tl.constexpr):
    """1 where a block has pairs in its first half alone, and a half is enough for a product; otherwise 0."""
    half = 0
    if BLOCK_M // 2 >= FEWEST:
        half = (tl.load(pair_of_row + block * BLOCK_M + BLOCK_M // 2) < 0).to(tl.int32)
    return half


@triton.jit
def _gate_up_tile(
    x,
    pair_of_row,
    blocks,
    scales,
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
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Rows `slot` [M] of act, from tile number `tile` of the rows of one expert, whose weights are given."""
    M: tl.constexpr = slot.shape[0]
    pair = tl.load(pair_of_row + slot)
    there = pair >= 0

    # The tile makes 8 codes of NEW words of act. Of 16 rows, 8 are gates and 8 the ups of the same results. The results
    # are in the order [code, word].
    NEW: tl.constexpr = ROWS // 16
    r = tl.arange(0, ROWS)
    made = r // 16 * 8 + r % 8
    row = 2 * (8 * (tile * NEW + made % NEW) + made // NEW) + r // 8 % 2
    hidden = words_product(
        x,
        tl.maximum(pair, 0) // CHOICES,
        there,
        blocks,
        scales,
        tl.minimum(row, 2 * INTER - 1),
        HIDDEN,
        X_STRIDE,
        WORDS,
        PAIRED,
        PRECISION,
        ASYNC,
        WIDE,
    )
    added = tl.load(bias + row, mask=row < 2 * INTER, other=0.0).to(tl.float32)
    hidden = (hidden + added[:, None]).reshape(ROWS // 16, 2, 8, M).permute(0, 2, 3, 1)

    # Words that are neighbours in act are a dimension of their own, so that Triton sees that they are.
    RUN: tl.constexpr = min(NEW, NEXT_WORDS)
    result = swiglu(hidden, ALPHA, LIMIT).reshape(8, NEW // RUN, RUN, M)
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
def _gate_up_many_pdl(
    x,
    expert_of_block,
    pair_of_row,
    blocks,
    scales,
    bias,
    act,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    NEXT_WORDS: tl.constexpr,
    PAIRED: tl.constexpr,
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
    blocks += expert * (INTER * HIDDEN)
    scales += expert * (2 * INTER * HIDDEN // 32)
    bias += expert * (2 * INTER)
    half = _is_half(pair_of_row, block, BLOCK_M)
    for halves in tl.static_range(2):
        if halves == 0 or BLOCK_M // 2 >= FEWEST:  # noqa: SIM102
            if half == halves:
                _gate_up_tile(
                    x,
                    pair_of_row,
                    blocks,
                    scales,
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
                    PAIRED,
                    PRECISION,
                    ASYNC,
                    WIDE,
                )


@triton.jit
def _down_tile(
    act,
    pair_of_row,
    blocks,
    scales,
    bias,
    out,
    column,
    slot,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Results `column` [ROWS] of the pairs of rows `slot` [M] of act, which are of one expert, whose weights are
    given."""
    pair = tl.load(pair_of_row + slot)
    row = FIRST + column
    result = words_product(
        act,
        slot,
        pair >= 0,
        blocks,
        scales,
        tl.minimum(row, HIDDEN - 1),
        INTER,
        ACT_STRIDE,
        WORDS,
        PAIRED,
        PRECISION,
        ASYNC,
        WIDE,
    )
    result += tl.load(bias + row, mask=row < HIDDEN, other=0.0).to(tl.float32)[:, None]
    cells = pair.to(tl.int64)[None, :] * COLUMNS + column[:, None]
    tl.store(out + cells, result, mask=(pair >= 0)[None, :] & (column < COLUMNS)[:, None])


@triton.jit
def _down_many_pdl(
    act,
    expert_of_block,
    pair_of_row,
    blocks,
    scales,
    bias,
    out,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ROWS results of each pair of one block, of the COLUMNS from FIRST on: out [pairs, COLUMNS] float32."""
    tile, block = tl.program_id(0) + let_next_start(EARLY), tl.program_id(1)
    zero = wait_for_previous(EARLY)
    act += zero
    expert_of_block += zero
    pair_of_row += zero
    out += zero
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    blocks += expert * (HIDDEN * INTER // 2)
    scales += expert * (HIDDEN * INTER // 32)
    bias += expert * HIDDEN
    half = _is_half(pair_of_row, block, BLOCK_M)
    for halves in tl.static_range(2):
        if halves == 0 or BLOCK_M // 2 >= FEWEST:  # noqa: SIM102
            if half == halves:
                _down_tile(
                    act,
                    pair_of_row,
                    blocks,
                    scales,
                    bias,
                    out,
                    tile * ROWS + tl.arange(0, ROWS),
                    block * BLOCK_M + tl.arange(0, BLOCK_M // (1 + halves)),
                    FIRST,
                    COLUMNS,
                    HIDDEN,
                    INTER,
                    ACT_STRIDE,
                    WORDS,
                    PAIRED,
                    PRECISION,
                    ASYNC,
                    WIDE,
                )


@triton.jit
def _sum_many_pdl(
    out,
    chosen,
    shares,
    residual,
    sums,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """WIDTH results of one token [T, H], of the COLUMNS from FIRST on: the sum over its choices, plus the residual."""
    zero = wait_then_let_next_start(EARLY)
    out += zero
    chosen += zero
    shares += zero
    residual += zero
    sums += zero
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = column < COLUMNS
    total = tl.zeros([WIDTH], tl.float32)
    if RESIDUAL:
        total += tl.load(residual + token * HIDDEN + FIRST + column, mask=inside, other=0.0)
    for choice in tl.static_range(CHOICES):
        pair = token * CHOICES + choice
        written = tl.load(chosen + pair) >= 0
        share = tl.load(shares + pair, mask=written, other=0.0)
        total += share * tl.load(out + pair * COLUMNS + column, mask=mask_and(inside, written), other=0.0)
    tl.store(sums + token * HIDDEN + FIRST + column, total, mask=inside)


def launch_many_pairs(
    x: torch.Tensor,
    grouped: Grouped,
    experts: Experts,
    block: Block,
    gate_up: Tile,
    down: Tile,
    arch: str,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, H] float32: the sum of the routed experts, plus `residual` [T, H] float32.

    x  [T, padded(H, gate_up.words)] in the order of the words, in the dtype of the weights
    """
    tokens, choices = grouped.shares.shape
    hidden, inter, early = experts.down_bias.size(1), experts.inter, has_dependent_launch(arch)
    blocks = grouped.expert_of_block.numel()
    shared = {
        "HIDDEN": hidden,
        "INTER": inter,
        "ACT_STRIDE": padded(inter, down.words),
        "BLOCK_M": block.pairs,
        **product_constants(x.dtype, arch),
        "WIDE": max(x.numel(), blocks * block.pairs * padded(inter, down.words)) >= 2**31,
        "EARLY": early,
    }
    act = x.new_empty((blocks * block.pairs, padded(inter, down.words)))
    wrap_triton(_gate_up_many_pdl)[(triton.cdiv(2 * inter, gate_up.rows), blocks)](
        x,
        grouped.expert_of_block,
        grouped.pair_of_row,
        experts.gate_up_blocks,
        experts.gate_up_scales,
        experts.gate_up_bias,
        act,
        CHOICES=choices,
        ALPHA=experts.alpha,
        LIMIT=experts.limit,
        X_STRIDE=x.size(1),
        NEXT_WORDS=down.words,
        **_constants(gate_up),
        **shared,
    )
    sums = grouped.shares.new_empty((tokens, hidden))
    parts = hidden if tokens <= MOST_TOKENS else COLUMNS
    for first in range(0, hidden, parts):
        columns = min(parts, hidden - first)
        width = min(1024, triton.next_power_of_2(columns))
        out = sums.new_empty((tokens * choices, columns))
        wrap_triton(_down_many_pdl)[(triton.cdiv(columns, down.rows), blocks)](
            act,
            grouped.expert_of_block,
            grouped.pair_of_row,
            experts.down_blocks,
            experts.down_scales,
            experts.down_bias,
            out,
            FIRST=first,
            COLUMNS=columns,
            **_constants(down),
            **shared,
        )
        wrap_triton(_sum_many_pdl)[(triton.cdiv(columns, width), tokens)](
            out,
            grouped.chosen,
            grouped.shares,
            sums if residual is None else residual,
            sums,
            FIRST=first,
            COLUMNS=columns,
            CHOICES=choices,
            HIDDEN=hidden,
            WIDTH=width,
            RESIDUAL=residual is not None,
            EARLY=early,
            num_warps=4,
        )
    return sums


def _constants(tile: Tile) -> dict[str, int]:
    return {"ROWS": tile.rows, "WORDS": tile.words, "num_warps": tile.warps, "num_stages": tile.stages}
