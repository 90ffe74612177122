"""Experts for many pairs (a chunk): grouped matrix products on tensor cores.

A *pair* is one (token, choice): pair = token * K + choice. Pairs are sorted by expert into blocks of BLOCK_M rows,
and all rows of a block belong to one expert (grouping.py). Blocks that are not needed have expert -1 and return at
once. Two grouped products run over the blocks.

Unpacking keeps the two weights of a byte next to each other, as they are in the matrix. As the left operand of a
product, the weights stay in the registers where they were unpacked. As the right operand they go through shared
memory. Which one is faster depends on the Triton version.

On Hopper, a product still runs while the next weights are unpacked. Triton (seen with 3.7) then overwrites registers
that the product still reads. `after_products` waits for the product. It stands after the unpacking, where the wait
costs nothing. The scales are loaded one iteration ahead, since single bytes cannot use the asynchronous copies that
hide the other loads.

The gate_up product takes a few rows of the weights for the blocks of all experts before the next rows: it gathers x,
which fits the L2 cache as a whole. The down product takes all rows for one block before the next block, whose act
lies together in memory. It is computed for COLUMNS of its results at a time: the float32 results of all pairs, before
they are summed, would take a third of the memory of a chunk.

Limits: in float16 the weights must fit float16, since they are rounded to the dtype of x. bfloat16 and float32 hold
them exactly for scales 1 to 253.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.launch_config import ConfigSpace, shape_of

from .arch import shared_memory
from .grouping import group_pairs
from .mxfp4 import Experts, after_products, mask_and, product_constants, scale_of, swiglu, unpack, unpack_pairs

LARGE_BLOCKS = 160 * 1024  # bytes of shared memory that blocks of 256 rows need
COLUMNS = 1536  # a multiple of every BLOCK_N


class Product(NamedTuple):
    """Launch config of one of the two grouped products.

    rows     rows of the weights (BLOCK_N)
    length   weights of a row at a time (BLOCK_K)
    warps    of a program
    stages   of the software pipeline over a row
    operand  which operand of the product the weights are: 1 the left one, 2 the right one
    """

    rows: int
    length: int
    warps: int
    stages: int
    operand: int


class Blocks(NamedTuple):
    """Launch config of both products: the rows of a block, which are pairs of one expert (BLOCK_M)."""

    rows: int


_PRODUCT = {"rows": (64, 128), "length": (64, 128), "warps": (4, 8), "stages": (2, 3, 4), "operand": (1, 2)}


def many_pairs_space(pairs: int, experts: int, hidden: int, inter: int, dtype: torch.dtype, arch: str) -> ConfigSpace:
    """Experts have more than PAIRS_OF_A_BATCH pairs on average. The default is blocks of so many, or of 256 where the
    shared memory allows and most experts have several."""
    if dtype == torch.float32:  # no tensor cores: products run on FMA units and take their operands from registers
        rows = 16
        gate_up = down = Product(rows=32, length=64, warps=4, stages=2, operand=1)
    elif pairs >= 512 * experts and shared_memory(arch) >= LARGE_BLOCKS:  # unpacked weights serve more rows
        rows = 256
        gate_up = down = Product(rows=128, length=64, warps=8, stages=4, operand=1)
    else:  # gate_up gathers x, and gathers less in larger tiles; down is faster in smaller tiles
        rows = 128
        gate_up = Product(rows=128, length=64, warps=8, stages=3, operand=1)
        down = Product(rows=64, length=64, warps=4, stages=3, operand=1)
    return ConfigSpace(
        name="experts_many",
        shape=shape_of(dtype, pairs=pairs, experts=experts, hidden=hidden, inter=inter),
        scaled=("pairs",),
        default={"blocks": Blocks(rows), "gate_up": gate_up, "down": down},
        options={"blocks": {"rows": (16, 64, 128, 256)}, "gate_up": _PRODUCT, "down": _PRODUCT},
    )


@triton.jit
def _block_product(
    x,
    line,
    blocks,
    scales,
    row,
    rows,
    LENGTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    ASYNC: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N] float32: lines of x [..., LENGTH] times rows of an MXFP4 matrix [rows, LENGTH]."""
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.minimum(row, rows - 1)[:, None]  # rows past the end are computed and not stored
    k = tl.arange(0, BLOCK_K)
    byte = tl.arange(0, BLOCK_K // 2)
    group = tl.arange(0, BLOCK_K // 32)
    if WIDE:
        line = line.to(tl.int64)
    x += line[:, None] * LENGTH + k[None, :]
    blocks += row * (LENGTH // 2) + byte[None, :]
    scales += row * (LENGTH // 32) + group[None, :]
    if OPERAND == 1:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    next_scale = tl.load(scales, mask=(group < LENGTH // 32)[None, :], other=0)
    for start in range(0, LENGTH, BLOCK_K):
        scale = scale_of(next_scale).to(tl.bfloat16 if PAIRED else tl.float32)
        ahead = start + BLOCK_K
        next_scale = tl.load(scales + ahead // 32, mask=(ahead // 32 + group < LENGTH // 32)[None, :], other=0)
        scale = tl.broadcast_to(scale[:, :, None], [BLOCK_N, BLOCK_K // 32, 16]).reshape(BLOCK_N, BLOCK_K // 2)
        if LENGTH % BLOCK_K == 0:
            packed = tl.load(blocks + start // 2)
            values = tl.load(x + start)
        else:
            packed = tl.load(blocks + start // 2, mask=(start // 2 + byte < LENGTH // 2)[None, :], other=0)
            values = tl.load(x + start, mask=(start + k < LENGTH)[None, :], other=0.0)
        if PAIRED:
            low, high = unpack_pairs(packed, scale)
        else:
            low = unpack(packed.to(tl.int32), scale, dtype)
            high = unpack(packed.to(tl.int32) >> 4, scale, dtype)
        weights = tl.join(low, high).reshape(BLOCK_N, BLOCK_K)
        if OPERAND == 1:
            if ASYNC:
                weights = after_products(weights)
            acc = tl.dot(weights, tl.trans(values), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(values, tl.trans(weights), acc, input_precision=PRECISION)
    if OPERAND == 1:
        acc = tl.trans(acc)
    return acc


@triton.jit
def _gate_up_many(
    x,
    expert_of_block,
    pair_of_slot,
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
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    ASYNC: tl.constexpr,
):
    """act [rows of the blocks, I] of one block, a few columns."""
    block, column = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    slot = block * BLOCK_M + tl.arange(0, BLOCK_M)
    token = tl.maximum(tl.load(pair_of_slot + slot), 0) // CHOICES  # rows without a pair read any token
    row = column * BLOCK_N + tl.arange(0, BLOCK_N)
    hidden = _block_product(
        x,
        token,
        blocks + expert * (INTER * HIDDEN),
        scales + expert * (2 * INTER * HIDDEN // 32),
        row,
        2 * INTER,
        HIDDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        PRECISION,
        PAIRED,
        WIDE,
        OPERAND,
        ASYNC,
    )
    bias_row = tl.load(bias + expert * (2 * INTER) + row, mask=row < 2 * INTER, other=0.0).to(tl.float32)
    hidden += bias_row[None, :]
    result = swiglu(hidden.reshape(BLOCK_M, BLOCK_N // 2, 2), ALPHA, LIMIT)
    i = column * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    cells = slot.to(tl.int64)[:, None] * INTER + i[None, :]
    tl.store(act + cells, result.to(act.dtype.element_ty), mask=(i < INTER)[None, :])


@triton.jit
def _down_many(
    act,
    routing_weights,
    expert_of_block,
    pair_of_slot,
    blocks,
    scales,
    bias,
    out,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    ASYNC: tl.constexpr,
):
    """COLUMNS results of each pair of one block, from column FIRST on, times the routing weights: [pairs, COLUMNS]."""
    expert = tl.load(expert_of_block + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    slot = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(pair_of_slot + slot)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, there = FIRST + column, column < COLUMNS
    result = _block_product(
        act,
        slot,
        blocks + expert * (HIDDEN * INTER // 2),
        scales + expert * (HIDDEN * INTER // 32),
        row,
        FIRST + COLUMNS,
        INTER,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        PRECISION,
        PAIRED,
        WIDE,
        OPERAND,
        ASYNC,
    )
    result += tl.load(bias + expert * HIDDEN + row, mask=there, other=0.0).to(tl.float32)[None, :]
    result *= tl.load(routing_weights + pair, mask=pair >= 0, other=0.0)[:, None]
    cells = pair.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(out + cells, result, mask=(pair >= 0)[:, None] & there[None, :])


@triton.jit
def _sum_choices(
    out,
    expert_indices,
    sums,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """COLUMNS of a token's sum [T, H], from column FIRST on.

    It is a kernel, because the compiler would keep the results of all columns in memory to sum them at once.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    for choice in tl.static_range(CHOICES):
        pair = token * CHOICES + choice
        written = tl.load(expert_indices + pair) >= 0
        total += tl.load(out + pair * COLUMNS + column, mask=mask_and(column < COLUMNS, written), other=0.0)
    tl.store(sums + token * HIDDEN + FIRST + column, total, mask=column < COLUMNS)


def launch_many_pairs(
    x: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_indices: torch.Tensor,
    experts: Experts,
    blocks: Blocks,
    gate_up: Product,
    down: Product,
    arch: str,
) -> torch.Tensor:
    """[T, H] float32: the sum of the routed experts. Arguments as gptoss::mxfp4_experts takes them."""
    (tokens, hidden), choices, inter = x.shape, expert_indices.size(1), experts.inter
    expert_of_block, pair_of_row = group_pairs(expert_indices.flatten(), experts.count, blocks.rows)
    shared = {
        "BLOCK_M": blocks.rows,
        **product_constants(x.dtype, arch),
        "WIDE": max(tokens * hidden, pair_of_row.numel() * inter) >= 2**31,
    }
    act = x.new_empty((pair_of_row.numel(), inter))
    wrap_triton(_gate_up_many)[(expert_of_block.numel(), triton.cdiv(2 * inter, gate_up.rows))](
        x,
        expert_of_block,
        pair_of_row,
        experts.gate_up_blocks,
        experts.gate_up_scales,
        experts.gate_up_bias,
        act,
        CHOICES=choices,
        HIDDEN=hidden,
        INTER=inter,
        ALPHA=experts.alpha,
        LIMIT=experts.limit,
        **_constants(gate_up),
        **shared,
    )
    sums = x.new_empty((tokens, hidden), dtype=torch.float32)
    for start in range(0, hidden, COLUMNS):
        columns = min(COLUMNS, hidden - start)
        out = x.new_empty((tokens, choices, columns), dtype=torch.float32)
        wrap_triton(_down_many)[(triton.cdiv(columns, down.rows), expert_of_block.numel())](
            act,
            routing_weights,
            expert_of_block,
            pair_of_row,
            experts.down_blocks,
            experts.down_scales,
            experts.down_bias,
            out,
            FIRST=start,
            COLUMNS=columns,
            HIDDEN=hidden,
            INTER=inter,
            **_constants(down),
            **shared,
        )
        wrap_triton(_sum_choices)[(tokens,)](
            out,
            expert_indices,
            sums,
            FIRST=start,
            COLUMNS=columns,
            CHOICES=choices,
            HIDDEN=hidden,
            WIDTH=triton.next_power_of_2(columns),
        )
    return sums


def _constants(product: Product) -> dict[str, int]:
    return {
        "BLOCK_N": product.rows,
        "BLOCK_K": product.length,
        "OPERAND": product.operand,
        "num_warps": product.warps,
        "num_stages": product.stages,
    }
