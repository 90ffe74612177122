"""Experts for a batch, or for a chunk of up to PAIRS_OF_A_BATCH pairs an expert: grouped products on tensor cores.

A *pair* is one (token, choice): pair = token * K + choice. Here the time is that of reading and unpacking the experts
that any token goes to. So the weights are the left operand of the products, with rows enough for a tile, and the pairs
of one expert are the columns (mxfp4_words.py). Before them the pairs are grouped in blocks of BLOCK_M, each of one
expert (router_groups.py, or grouping.py where the experts are given).

    _gate_up_batch_pdl   ROWS of the 2 I rows for one block: act, in the order of the words.
    _down_batch_pdl      ROWS of the H rows for one block: results of each pair, float32.
    _sum_batch_pdl       the sum over the choices of a token, times the routing weights, plus the residual. There are
                         no atomic additions, so that equal inputs have equal results.

Blocks that are not needed have expert -1 and return at once: how many are needed is known on the device alone.

Limits: H and I are multiples of 32, as in MXFP4. In float16 the weights must fit float16, since they are rounded to the
dtype of x. bfloat16 and float32 hold them exactly for scales 1 to 253.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.launch_config import ConfigSpace, shape_of

from .arch import has_dependent_launch
from .dependent_launch import let_next_start, wait_for_previous, wait_then_let_next_start
from .grouping import Grouped
from .mxfp4 import Experts, mask_and, product_constants, swiglu
from .mxfp4_words import padded, word_place, words_product

PAIRS_OF_A_BATCH = 64  # of an expert, on average: with more, experts_many.py is as fast or faster


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


def is_batch(pairs: int, experts: int) -> bool:
    """Whether so many pairs are computed here, and not by experts_many.py."""
    return pairs <= PAIRS_OF_A_BATCH * experts


def batch_space(tokens: int, choices: int, experts: int, hidden: int, inter: int, dtype: torch.dtype) -> ConfigSpace:
    """The launch configs of the kernels for tokens * choices pairs. By default a block has all pairs of most experts,
    if those are few: what a block has beyond them is computed for nothing."""
    average = tokens * choices / experts
    pairs = next((block for block, most in ((8, 2), (16, 10), (32, 24)) if average <= most), 64)
    if dtype == torch.float32:  # no tensor cores: products run on FMA units and take their operands from registers
        gate_up = down = Tile(rows=32, words=4, warps=4, stages=2)
    elif pairs == 64:
        gate_up = down = Tile(rows=128, words=16, warps=8, stages=3)
    elif pairs == 8:
        gate_up = down = Tile(rows=64, words=32, warps=4, stages=3)
    else:
        gate_up, down = Tile(rows=128, words=16, warps=4, stages=3), Tile(rows=64, words=32, warps=4, stages=3)
    return ConfigSpace(
        name="experts_batch",
        shape=shape_of(dtype, tokens=tokens, choices=choices, experts=experts, hidden=hidden, inter=inter),
        scaled=("tokens",),
        default={"block": Block(pairs), "gate_up": gate_up, "down": down},
        options={"block": {"pairs": (8, 16, 32, 64)}, "gate_up": _TILE, "down": _TILE},
    )


_TILE = {"rows": (64, 128), "words": (16, 32, 64), "warps": (2, 4, 8), "stages": (2, 3, 4)}


@triton.jit
def _gate_up_batch_pdl(
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
    EARLY: tl.constexpr,
):
    """act [rows of the blocks, I] of one block, from ROWS of the 2 I rows of its expert."""
    zero = wait_then_let_next_start(EARLY)
    x += zero
    expert_of_block += zero
    pair_of_row += zero
    act += zero
    block = tl.program_id(0)
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    column = block * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(pair_of_row + column)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    hidden = words_product(
        x,
        tl.maximum(pair, 0) // CHOICES,
        pair >= 0,
        blocks + expert * (INTER * HIDDEN),
        scales + expert * (2 * INTER * HIDDEN // 32),
        tl.minimum(row, 2 * INTER - 1),
        HIDDEN,
        X_STRIDE,
        WORDS,
        PAIRED,
        PRECISION,
        ASYNC,
    )
    added = tl.load(bias + expert * (2 * INTER) + row, mask=row < 2 * INTER, other=0.0).to(tl.float32)
    hidden = tl.trans(hidden + added[:, None])
    result = swiglu(hidden.reshape(BLOCK_M, ROWS // 2, 2), ALPHA, LIMIT)
    i = tl.program_id(1) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    cells = column[:, None] * ACT_STRIDE + word_place(i, NEXT_WORDS)[None, :]
    there = (pair >= 0)[:, None]
    tl.store(act + cells, result.to(act.dtype.element_ty), mask=there & (i < INTER)[None, :])
    if ACT_STRIDE > INTER:  # noqa: SIM102  (Triton 3.6 has no `and` of a constant and a value)
        if tl.program_id(1) == tl.num_programs(1) - 1:
            padding = INTER + tl.arange(0, 8 * NEXT_WORDS)
            rest = column[:, None] * ACT_STRIDE + word_place(padding, NEXT_WORDS)[None, :]
            nothing = tl.zeros([BLOCK_M, 8 * NEXT_WORDS], act.dtype.element_ty)
            tl.store(act + rest, nothing, mask=there & (padding < ACT_STRIDE)[None, :])


@triton.jit
def _down_batch_pdl(
    act,
    expert_of_block,
    pair_of_row,
    blocks,
    scales,
    bias,
    out,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ACT_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ROWS of the H results of each pair of one block: out [pairs, H] float32."""
    block = tl.program_id(0) + let_next_start(EARLY)
    zero = wait_for_previous(EARLY)
    act += zero
    expert_of_block += zero
    pair_of_row += zero
    out += zero
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    column = block * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(pair_of_row + column)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    result = words_product(
        act,
        column,
        pair >= 0,
        blocks + expert * (HIDDEN * INTER // 2),
        scales + expert * (HIDDEN * INTER // 32),
        tl.minimum(row, HIDDEN - 1),
        INTER,
        ACT_STRIDE,
        WORDS,
        PAIRED,
        PRECISION,
        ASYNC,
    )
    result += tl.load(bias + expert * HIDDEN + row, mask=row < HIDDEN, other=0.0).to(tl.float32)[:, None]
    cells = pair[None, :] * HIDDEN + row[:, None]
    tl.store(out + cells, result, mask=(pair >= 0)[None, :] & (row < HIDDEN)[:, None])


@triton.jit
def _sum_batch_pdl(
    out,
    chosen,
    shares,
    residual,
    sums,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """COLUMNS of the H results of one token [T, H]: the sum over its choices, plus the residual."""
    zero = wait_then_let_next_start(EARLY)
    out += zero
    chosen += zero
    shares += zero
    residual += zero
    sums += zero
    token = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < HIDDEN
    total = tl.zeros([COLUMNS], tl.float32)
    if RESIDUAL:
        total += tl.load(residual + token * HIDDEN + column, mask=inside, other=0.0)
    for choice in tl.static_range(CHOICES):
        pair = token * CHOICES + choice
        written = tl.load(chosen + pair) >= 0
        share = tl.load(shares + pair, mask=written, other=0.0)
        total += share * tl.load(out + pair * HIDDEN + column, mask=mask_and(inside, written), other=0.0)
    tl.store(sums + token * HIDDEN + column, total, mask=inside)


def launch_batch(
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
        "EARLY": early,
    }
    act = x.new_empty((blocks * block.pairs, padded(inter, down.words)))
    wrap_triton(_gate_up_batch_pdl)[(blocks, triton.cdiv(2 * inter, gate_up.rows))](
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
    out = grouped.shares.new_empty((tokens * choices, hidden))
    wrap_triton(_down_batch_pdl)[(blocks, triton.cdiv(hidden, down.rows))](
        act,
        grouped.expert_of_block,
        grouped.pair_of_row,
        experts.down_blocks,
        experts.down_scales,
        experts.down_bias,
        out,
        **_constants(down),
        **shared,
    )
    sums = out.new_empty((tokens, hidden))
    columns = min(1024, triton.next_power_of_2(hidden))
    wrap_triton(_sum_batch_pdl)[(triton.cdiv(hidden, columns), tokens)](
        out,
        grouped.chosen,
        grouped.shares,
        sums if residual is None else residual,
        sums,
        CHOICES=choices,
        HIDDEN=hidden,
        COLUMNS=columns,
        RESIDUAL=residual is not None,
        EARLY=early,
        num_warps=4,
    )
    return sums


def _constants(tile: Tile) -> dict[str, int]:
    return {"ROWS": tile.rows, "WORDS": tile.words, "num_warps": tile.warps, "num_stages": tile.stages}
