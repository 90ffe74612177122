"""Experts for many pairs (a chunk): grouped matrix products on tensor cores.

A *pair* is one (token, choice): pair = token * K + choice. Pairs are sorted by expert into blocks of
BLOCK_M slots that each belong to one expert (`group_pairs`; the number of blocks is the static worst case,
blocks not needed have expert -1 and return at once), and two grouped products run over the blocks. A byte's two weights are
neighbours when unpacked as in the matrix. As the left operand of a product the tensor cores take them from registers,
where they were unpacked, as the right one from shared memory; which is faster differs between Triton's versions. On Hopper
products run on while the next weights are unpacked, and Triton (seen with 3.7) lets those overwrite registers that a product
has still to read: `_after_products` waits for it, behind the unpacking, which costs nothing. The weights' scales are loaded one step ahead, since single bytes
cannot go through the asynchronous copies that hide the other loads.

The grouping is two kernels in which each expert has a program that walks all pairs: `_count_pairs`, after
which every expert knows where its blocks begin, and `_place_pairs`. Written in PyTorch it is seven small
kernels when a compiler has fused it, and a target without Inductor would need all its operations.

The gate_up product takes the blocks of all experts for a few rows of the weights at a time, since it gathers
x, which fits the L2 cache as a whole; the down product takes all rows for one block, whose act lies together.
The down product is made for COLUMNS of its results at a time: what the pairs of a token contribute, in
float32, would need a third of all memory of a chunk before it is summed.

Limits: in float16 the weights must fit float16, since they are rounded to the dtype of x (bfloat16 and
float32 hold them exactly, scales 1..253).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.kernel import Cut, shape_of

from .mxfp4 import scale_of, swiglu

COLUMNS = 1536  # a multiple of every tile's rows


class Product(NamedTuple):
    """How one of the two grouped products is cut."""

    rows: int  # BLOCK_N: rows of the weights
    length: int  # BLOCK_K: weights of a row at a time
    warps: int
    stages: int
    operand: int  # of the product, that the weights are: 1 the left, 2 the right


class Blocks(NamedTuple):
    """How pairs are grouped for both."""

    slots: int  # BLOCK_M: pairs of one expert


_PRODUCT = {"rows": (64, 128), "length": (64, 128), "warps": (4, 8), "stages": (2, 3, 4), "operand": (1, 2)}


def cut_many(pairs: int, experts: int, hidden: int, inter: int, dtype: torch.dtype) -> Cut:
    """About one block an expert when pairs spread evenly."""
    if dtype == torch.float32:  # no tensor cores: products run on FMA units, out of registers
        slots = 16
        gate_up = down = Product(rows=32, length=64, warps=4, stages=2, operand=1)
    else:
        slots = min(128, max(32, triton.next_power_of_2(triton.cdiv(pairs, experts))))
        gate_up = down = Product(rows=128, length=64, warps=4, stages=3, operand=1)
        if slots == 128:  # gate_up gathers x, and by larger tiles it gathers less; down is faster in smaller ones
            gate_up, down = gate_up._replace(warps=8), down._replace(rows=64)
    return Cut(
        name="experts_many",
        shape=shape_of(dtype, pairs=pairs, experts=experts, hidden=hidden, inter=inter),
        sizes=("pairs",),
        default={"blocks": Blocks(slots), "gate_up": gate_up, "down": down},
        options={"blocks": {"slots": (16, 32, 64, 128)}, "gate_up": _PRODUCT, "down": _PRODUCT},
    )


@triton.jit
def _count_pairs(indices, counts, PAIRS: tl.constexpr, TILE: tl.constexpr):
    """How many pairs one expert has."""
    expert = tl.program_id(0)
    found = tl.zeros([TILE], tl.int32)
    for start in range(0, PAIRS, TILE):
        pair = start + tl.arange(0, TILE)
        found += (tl.load(indices + pair, mask=pair < PAIRS, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit
def _place_pairs(
    indices, counts, expert_of_block, pair_of_slot,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, BLOCKS: tl.constexpr, SLOTS: tl.constexpr,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The blocks of one expert, which lie behind those of the experts before it; COUNT and WIDTH are EXPERTS and
    SLOTS rounded up to powers of two."""
    expert = tl.program_id(0)
    other = tl.arange(0, COUNT)
    needed = tl.cdiv(tl.load(counts + other, mask=other < EXPERTS, other=0), SLOTS)
    first = tl.sum(tl.where(other < expert, needed, 0), 0)
    count = tl.load(counts + expert)
    end = first + tl.cdiv(count, SLOTS)

    placed = first * SLOTS
    for start in range(0, PAIRS, TILE):
        pair = start + tl.arange(0, TILE)
        mine = tl.load(indices + pair, mask=pair < PAIRS, other=-1) == expert
        rank = tl.cumsum(mine.to(tl.int32), 0)  # from 1
        tl.store(pair_of_slot + placed + rank - 1, pair, mask=mine)
        placed += tl.sum(mine.to(tl.int32), 0)
    spare = placed + tl.arange(0, WIDTH)
    tl.store(pair_of_slot + spare, tl.full([WIDTH], -1, tl.int32), mask=spare < end * SLOTS)

    upto = tl.where(expert == EXPERTS - 1, BLOCKS, end)  # the last expert marks the blocks that nobody needs
    for start in range(first, upto, TILE):
        block = start + tl.arange(0, TILE)
        tl.store(expert_of_block + block, tl.where(block < end, expert, -1), mask=block < upto)


def group_pairs(indices: torch.Tensor, experts: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs sorted by expert: (expert of each block [blocks], pair of each slot [blocks * slots]), -1: none.

    indices [pairs] int64, -1: of no expert; results int32. Slots of a block that has no expert are not written.
    No sort: a pair's place is its rank among the pairs of its expert, which is a running count, after the blocks
    of the experts before. So the pairs of an expert are in ascending order, and equal inputs are grouped equally.
    """
    pairs = indices.numel()
    blocks = (pairs + min(experts, pairs) * (slots - 1)) // slots  # the most that rounding up can need
    counts, expert_of_block, pair_of_slot = (
        torch.empty(size, dtype=torch.int32, device=indices.device) for size in (experts, blocks, blocks * slots)
    )
    tile = min(1024, triton.next_power_of_2(max(pairs, 1)))
    wrap_triton(_count_pairs)[(experts,)](indices, counts, PAIRS=pairs, TILE=tile, num_warps=4)
    wrap_triton(_place_pairs)[(experts,)](
        indices, counts, expert_of_block, pair_of_slot,
        PAIRS=pairs, EXPERTS=experts, BLOCKS=blocks, SLOTS=slots,
        COUNT=triton.next_power_of_2(experts), WIDTH=triton.next_power_of_2(slots), TILE=tile, num_warps=4,
    )  # fmt: skip
    return expert_of_block, pair_of_slot


@triton.jit
def _unpack(nibbles, scale, dtype: tl.constexpr):
    """E2M1 codes (int32) times their scale, in `dtype`. Codes become float32 * 2^-126 by shifting."""
    bits = ((nibbles & 7) << 22) | ((nibbles & 8) << 28)
    # Two factors: 2^126 and the largest scales do not fit one float32.
    return (bits.to(tl.float32, bitcast=True) * 8.507059173023462e37 * scale).to(dtype)


@triton.jit
def _unpack_pairs(packed, scale):
    """Bytes of two E2M1 codes and their scales in bfloat16 to two bfloat16: the low codes and the high ones.

    Four bytes at a time, two weights an instruction. A code becomes bfloat16 * 2^-126 by shifting. Products are
    fma with -0, which changes nothing: GPUs before sm_90 have no other for pairs."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, m, s, big, none;
        mov.b32 big, 0x7E807E80;
        mov.b32 none, 0x80008000;
        prmt.b32 a, $4, 0, 0x4140;
        prmt.b32 b, $4, 0, 0x4342;
        shl.b32 m, a, 6;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, a, 12;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $0, m, $5, none;
        shl.b32 m, b, 6;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, b, 12;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $1, m, $6, none;
        shl.b32 m, a, 2;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, a, 8;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $2, m, $5, none;
        shl.b32 m, b, 2;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, b, 8;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $3, m, $6, none;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r,r", [packed, scale], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _after_products(weights):
    """Weights of 16 bits as they are, once the products that were begun are done."""
    return tl.inline_asm_elementwise(
        "wgmma.wait_group.sync.aligned 0;", "=r,=r,=r,=r,0,1,2,3", [weights],
        dtype=weights.dtype, is_pure=True, pack=8,
    )  # fmt: skip


@triton.jit
def _block_product(
    x, line, blocks, scales, row, rows,
    LENGTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, PAIRED: tl.constexpr, WIDE: tl.constexpr, OPERAND: tl.constexpr, ASYNC: tl.constexpr,
):  # fmt: skip
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
            low, high = _unpack_pairs(packed, scale)
        else:
            low = _unpack(packed.to(tl.int32), scale, dtype)
            high = _unpack(packed.to(tl.int32) >> 4, scale, dtype)
        weights = tl.join(low, high).reshape(BLOCK_N, BLOCK_K)
        if OPERAND == 1:
            if ASYNC:
                weights = _after_products(weights)
            acc = tl.dot(weights, tl.trans(values), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(values, tl.trans(weights), acc, input_precision=PRECISION)
    if OPERAND == 1:
        acc = tl.trans(acc)
    return acc


@triton.jit
def _gate_up_many(
    x, expert_of_block, pair_of_slot, blocks, scales, bias, act,
    CHOICES: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, PAIRED: tl.constexpr,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, ASYNC: tl.constexpr,
):  # fmt: skip
    """act [slots, I] of one block."""
    block, column = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    slot = block * BLOCK_M + tl.arange(0, BLOCK_M)
    token = tl.maximum(tl.load(pair_of_slot + slot), 0) // CHOICES  # slots of no pair take any
    row = column * BLOCK_N + tl.arange(0, BLOCK_N)
    hidden = _block_product(
        x, token, blocks + expert * (INTER * HIDDEN), scales + expert * (2 * INTER * HIDDEN // 32),
        row, 2 * INTER, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, PAIRED, WIDE, OPERAND, ASYNC,
    )  # fmt: skip
    bias_row = tl.load(bias + expert * (2 * INTER) + row, mask=row < 2 * INTER, other=0.0).to(tl.float32)
    hidden += bias_row[None, :]
    result = swiglu(hidden.reshape(BLOCK_M, BLOCK_N // 2, 2), ALPHA, LIMIT)
    i = column * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    cells = slot.to(tl.int64)[:, None] * INTER + i[None, :]
    tl.store(act + cells, result.to(act.dtype.element_ty), mask=(i < INTER)[None, :])


@triton.jit
def _down_many(
    act, routing_weights, expert_of_block, pair_of_slot, blocks, scales, bias, out,
    FIRST: tl.constexpr, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, PAIRED: tl.constexpr,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, ASYNC: tl.constexpr,
):  # fmt: skip
    """COLUMNS of the results of one block's pairs, from FIRST on, times their routing weights: [pairs, COLUMNS]."""
    expert = tl.load(expert_of_block + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    slot = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(pair_of_slot + slot)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, there = FIRST + column, column < COLUMNS
    result = _block_product(
        act, slot, blocks + expert * (HIDDEN * INTER // 2), scales + expert * (HIDDEN * INTER // 32),
        row, FIRST + COLUMNS, INTER, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, PAIRED, WIDE, OPERAND, ASYNC,
    )  # fmt: skip
    result += tl.load(bias + expert * HIDDEN + row, mask=there, other=0.0).to(tl.float32)[None, :]
    result *= tl.load(routing_weights + pair, mask=pair >= 0, other=0.0)[:, None]
    cells = pair.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(out + cells, result, mask=(pair >= 0)[:, None] & there[None, :])


@triton.jit
def _sum_choices(
    out, expert_indices, sums,
    FIRST: tl.constexpr, COLUMNS: tl.constexpr, CHOICES: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """COLUMNS of a token's sum [T, H], from FIRST on. A kernel, lest the compiler keep all columns to sum them at once."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    for choice in tl.static_range(CHOICES):
        pair = token * CHOICES + choice
        written = tl.load(expert_indices + pair) >= 0
        total += tl.load(out + pair * COLUMNS + column, mask=(column < COLUMNS) & written, other=0.0)
    tl.store(sums + token * HIDDEN + FIRST + column, total, mask=column < COLUMNS)


def many(
    x, routing_weights, expert_indices, gate_up_blocks, gate_up_scales, gate_up_bias,
    down_blocks, down_scales, down_bias, alpha, limit, blocks, first, second, arch,
) -> torch.Tensor:  # fmt: skip
    """[T, H] float32. blocks, first and second: how pairs and the two products are cut."""
    (tokens, hidden), choices = x.shape, expert_indices.size(1)
    experts, inter = down_blocks.size(0), down_blocks.size(2) * 32
    expert_of_block, pair_of_slot = group_pairs(expert_indices.flatten(), experts, blocks.slots)
    tile = {
        "BLOCK_M": blocks.slots,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "PAIRED": x.dtype == torch.bfloat16 and not triton.knobs.runtime.interpret,
        "ASYNC": arch == "sm_90" and x.dtype.itemsize == 2 and not triton.knobs.runtime.interpret,
        "WIDE": max(tokens * hidden, pair_of_slot.numel() * inter) >= 2**31,
    }  # fmt: skip
    gate_up, down = (
        {"BLOCK_N": cut.rows, "BLOCK_K": cut.length, "num_warps": cut.warps, "num_stages": cut.stages,
         "OPERAND": cut.operand, **tile}
        for cut in (first, second)
    )  # fmt: skip
    act = x.new_empty((pair_of_slot.numel(), inter))
    wrap_triton(_gate_up_many)[(expert_of_block.numel(), triton.cdiv(2 * inter, first.rows))](
        x, expert_of_block, pair_of_slot, gate_up_blocks, gate_up_scales, gate_up_bias, act,
        CHOICES=choices, HIDDEN=hidden, INTER=inter, ALPHA=alpha, LIMIT=limit, **gate_up,
    )  # fmt: skip
    sums = x.new_empty((tokens, hidden), dtype=torch.float32)
    for start in range(0, hidden, COLUMNS):
        columns = min(COLUMNS, hidden - start)
        out = x.new_empty((tokens, choices, columns), dtype=torch.float32)
        wrap_triton(_down_many)[(triton.cdiv(columns, second.rows), expert_of_block.numel())](
            act, routing_weights, expert_of_block, pair_of_slot, down_blocks, down_scales, down_bias, out,
            FIRST=start, COLUMNS=columns, HIDDEN=hidden, INTER=inter, **down,
        )  # fmt: skip
        wrap_triton(_sum_choices)[(tokens,)](
            out, expert_indices, sums,
            FIRST=start, COLUMNS=columns, CHOICES=choices, HIDDEN=hidden, WIDTH=triton.next_power_of_2(columns),
        )  # fmt: skip
    return sums
