"""Experts for many pairs (a chunk): grouped matrix products on tensor cores.

A *pair* is one (token, choice): pair = token * K + choice. Pairs are sorted by expert into blocks of
BLOCK_M slots that each belong to one expert (`group_pairs`, plain PyTorch on the device; the number of
blocks is the static worst case, blocks not needed have expert -1 and return at once), and two grouped
products run over the blocks. A byte holds two weights of neighbouring k, so the product is two dots: low
nibbles with the even plane of x, high nibbles with the odd one; no register is interleaved. The weights are
the left operand, which the tensor cores take from registers, where they were unpacked. act is kept in
slot order, in the dtype of x and as two planes; the second kernel writes the pairs' rows back in pair order.

Limits: in float16 the weights must fit float16, since they are rounded to the dtype of x (bfloat16 and
float32 hold them exactly, scales 1..253).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .mxfp4 import scale_of, swiglu


class Tiles(NamedTuple):
    """How the grouped products are cut."""

    slots: int  # BLOCK_M: pairs of one expert
    rows: int  # BLOCK_N: rows of the weights
    length: int  # BLOCK_K: weights of a row at a time
    warps: int
    stages: int


def choose_tiles(pairs: int, experts: int, dtype: torch.dtype) -> Tiles:
    """About one block an expert when pairs spread evenly."""
    if dtype == torch.float32:  # no tensor cores: products run on FMA units, out of registers
        return Tiles(slots=16, rows=32, length=64, warps=4, stages=2)
    slots = min(128, max(16, triton.next_power_of_2(triton.cdiv(pairs, experts))))
    return Tiles(slots, rows=128 if slots <= 64 else 64, length=64, warps=4, stages=3)


def group_pairs(indices: torch.Tensor, experts: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs sorted by expert: (expert of each block [blocks], pair of each slot [blocks * slots]), -1: none.

    indices [pairs]. int32; no sort: a pair's place is its rank among the pairs of its expert, which is a
    running count, after the blocks of the experts before.
    """
    pairs = indices.numel()
    blocks = (pairs + min(experts, pairs) * (slots - 1)) // slots  # the most that rounding up can need
    chosen = indices[:, None] == torch.arange(experts, device=indices.device)  # [pairs, experts]
    counted = chosen.cumsum(0, dtype=torch.int32)
    ends = ((counted[-1] + (slots - 1)) // slots).cumsum(0, dtype=torch.int32)  # in blocks
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    place = torch.where(chosen, starts * slots + counted - 1, 0).sum(1)
    place = torch.where(indices >= 0, place, blocks * slots)  # the pairs of no expert share a spare slot
    spread = torch.full((blocks * slots + 1,), -1, dtype=torch.int32, device=indices.device)
    spread = spread.scatter(0, place, torch.arange(pairs, dtype=torch.int32, device=indices.device))
    block = torch.arange(blocks, device=indices.device)
    expert = (ends <= block[:, None]).sum(1, dtype=torch.int32)
    return torch.where(block < ends[-1], expert, -1), spread[:-1]


@triton.jit
def _unpack(nibbles, scale, dtype: tl.constexpr):
    """E2M1 codes (int32) times their scale, in `dtype`. Codes become float32 * 2^-126 by shifting."""
    bits = ((nibbles & 7) << 22) | ((nibbles & 8) << 28)
    # Two factors: 2^126 and the largest scales do not fit one float32.
    return (bits.to(tl.float32, bitcast=True) * 8.507059173023462e37 * scale).to(dtype)


@triton.jit
def _unpack_pairs(packed, scale):
    """Bytes of two E2M1 codes and their scales in bfloat16 to two bfloat16: the low codes and the high ones.

    Four bytes at a time, two weights an instruction. A code becomes bfloat16 * 2^-126 by shifting."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, m, s, big;
        mov.b32 big, 0x7E807E80;
        prmt.b32 a, $4, 0, 0x4140;
        prmt.b32 b, $4, 0, 0x4342;
        shl.b32 m, a, 6;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, a, 12;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        mul.rn.bf16x2 m, m, big;
        mul.rn.bf16x2 $0, m, $5;
        shl.b32 m, b, 6;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, b, 12;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        mul.rn.bf16x2 m, m, big;
        mul.rn.bf16x2 $1, m, $6;
        shl.b32 m, a, 2;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, a, 8;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        mul.rn.bf16x2 m, m, big;
        mul.rn.bf16x2 $2, m, $5;
        shl.b32 m, b, 2;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, b, 8;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        mul.rn.bf16x2 m, m, big;
        mul.rn.bf16x2 $3, m, $6;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r,r", [packed, scale], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _block_product(
    x, line, there, blocks, scales, row, last_row,
    LENGTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] float32: lines of x [..., 2 planes, LENGTH / 2] times rows of an MXFP4 matrix."""
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.minimum(row, last_row - 1)  # rows past the end are computed and not stored
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, LENGTH // 2, BLOCK_K // 2):
        byte = start + tl.arange(0, BLOCK_K // 2)
        group = start // 16 + tl.arange(0, BLOCK_K // 32)
        inside = byte < LENGTH // 2
        packed = tl.load(
            blocks + row[:, None] * (LENGTH // 2) + byte[None, :], mask=inside[None, :], other=0
        )
        scale = tl.load(
            scales + row[:, None] * (LENGTH // 32) + group[None, :],
            mask=(group < LENGTH // 32)[None, :], other=0,
        )  # fmt: skip
        scale = tl.broadcast_to(scale_of(scale)[:, :, None], [BLOCK_N, BLOCK_K // 32, 16])
        scale = scale.reshape(BLOCK_N, BLOCK_K // 2)
        cells = line[:, None] * LENGTH + byte[None, :]
        mask = there[:, None] & inside[None, :]
        even = tl.load(x + cells, mask=mask, other=0.0)
        odd = tl.load(x + cells + LENGTH // 2, mask=mask, other=0.0)
        if PAIRED:
            low, high = _unpack_pairs(packed, scale.to(tl.bfloat16))
        else:
            low = _unpack(packed.to(tl.int32), scale, dtype)
            high = _unpack(packed.to(tl.int32) >> 4, scale, dtype)
        acc = tl.dot(low, tl.trans(even), acc, input_precision=PRECISION)
        acc = tl.dot(high, tl.trans(odd), acc, input_precision=PRECISION)
    return tl.trans(acc)


@triton.jit
def _gate_up_many(
    x, expert_of_block, pair_of_slot, blocks, scales, bias, act,
    CHOICES: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """act [slots, 2 planes, I / 2] of one block."""
    expert = tl.load(expert_of_block + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    slot = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(pair_of_slot + slot)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    hidden = _block_product(
        x, tl.maximum(pair, 0) // CHOICES, pair >= 0,
        blocks + expert * (INTER * HIDDEN), scales + expert * (2 * INTER * HIDDEN // 32),
        row, 2 * INTER, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, PAIRED,
    )  # fmt: skip
    bias_row = tl.load(bias + expert * (2 * INTER) + row, mask=row < 2 * INTER, other=0.0).to(tl.float32)
    hidden += bias_row[None, :]
    result = swiglu(hidden.reshape(BLOCK_M, BLOCK_N // 2, 2), ALPHA, LIMIT)
    i = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    cells = slot.to(tl.int64)[:, None] * INTER + (i % 2 * (INTER // 2) + i // 2)[None, :]
    tl.store(act + cells, result.to(act.dtype.element_ty), mask=(i < INTER)[None, :])


@triton.jit
def _down_many(
    act, routing_weights, expert_of_block, pair_of_slot, blocks, scales, bias, out,
    HIDDEN: tl.constexpr, INTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """Results of the pairs of one block times their routing weights, in pair order [pairs, H] float32."""
    expert = tl.load(expert_of_block + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    slot = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.load(pair_of_slot + slot)
    there = pair >= 0
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    result = _block_product(
        act, slot, there,
        blocks + expert * (HIDDEN * INTER // 2), scales + expert * (HIDDEN * INTER // 32),
        row, HIDDEN, INTER, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, PAIRED,
    )  # fmt: skip
    result += tl.load(bias + expert * HIDDEN + row, mask=row < HIDDEN, other=0.0).to(tl.float32)[None, :]
    result *= tl.load(routing_weights + pair, mask=there, other=0.0)[:, None]
    cells = pair.to(tl.int64)[:, None] * HIDDEN + row[None, :]
    tl.store(out + cells, result, mask=there[:, None] & (row < HIDDEN)[None, :])


def many(
    x, routing_weights, expert_indices, gate_up_blocks, gate_up_scales, gate_up_bias,
    down_blocks, down_scales, down_bias, alpha, limit,
) -> torch.Tensor:  # fmt: skip
    """[T, H] float32."""
    (tokens, hidden), choices = x.shape, expert_indices.size(1)
    experts, inter = down_blocks.size(0), down_blocks.size(2) * 32
    tiles = choose_tiles(tokens * choices, experts, x.dtype)
    expert_of_block, pair_of_slot = group_pairs(expert_indices.flatten(), experts, tiles.slots)
    act = x.new_empty((pair_of_slot.numel(), inter))
    out = x.new_empty((tokens, choices, hidden), dtype=torch.float32)
    tile = {
        "BLOCK_M": tiles.slots, "BLOCK_N": tiles.rows, "BLOCK_K": tiles.length,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "PAIRED": x.dtype == torch.bfloat16 and not triton.knobs.runtime.interpret,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    wrap_triton(_gate_up_many)[(triton.cdiv(2 * inter, tiles.rows), expert_of_block.numel())](
        x.unflatten(-1, (-1, 2)).mT.contiguous(), expert_of_block, pair_of_slot, gate_up_blocks, gate_up_scales, gate_up_bias, act,
        CHOICES=choices, HIDDEN=hidden, INTER=inter, ALPHA=alpha, LIMIT=limit, **tile,
    )  # fmt: skip
    wrap_triton(_down_many)[(triton.cdiv(hidden, tiles.rows), expert_of_block.numel())](
        act, routing_weights, expert_of_block, pair_of_slot, down_blocks, down_scales, down_bias, out,
        HIDDEN=hidden, INTER=inter, **tile,
    )  # fmt: skip
    return torch.where(expert_indices.unsqueeze(-1) >= 0, out, 0.0).sum(dim=1)  # nobody wrote the rows of -1
