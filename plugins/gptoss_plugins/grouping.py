"""Groups (token, choice) pairs by expert, for the grouped products of experts_many.py.

The grouping is two kernels. In each of them an expert has a program that reads all pairs. After `_count_pairs` every
expert knows where its blocks begin, and `_place_pairs` writes them. There is no sort: the row of a pair is its rank
among the pairs of its expert, which is a running count, after the blocks of the experts before. In plain PyTorch this
takes seven small kernels even after fusion, and each target would need all of these operators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

FEWEST = 16  # pairs of a half: a tile of 8 uses another instruction, which rounds differently


class Grouped(NamedTuple):
    """Pairs grouped by expert.

    chosen           [T, K], the expert of each pair; -1: none
    shares           [T, K] float32, the routing weights
    expert_of_block  [blocks] int32; -1: not needed
    pair_of_row      [blocks * block] int32; -1: none
    """

    chosen: torch.Tensor
    shares: torch.Tensor
    expert_of_block: torch.Tensor
    pair_of_row: torch.Tensor


def blocks_for(pairs: int, experts: int, block: int) -> int:
    """The most blocks that pairs of so many experts can need."""
    return (pairs + min(experts, pairs) * (block - 1)) // block


def halves_for(block: int) -> int:
    """In how many sizes a block of so many pairs is computed: 2, where a half of it is enough for a product, or 1."""
    return 2 if block // 2 >= FEWEST else 1


@triton.jit
def is_half(pair_of_row, block, BLOCK_M: tl.constexpr, HALVES: tl.constexpr):
    """1 where a block has pairs in its first half alone, and HALVES is 2; otherwise 0."""
    half = 0
    if HALVES == 2:
        half = (tl.load(pair_of_row + block * BLOCK_M + BLOCK_M // 2) < 0).to(tl.int32)
    return half


@triton.jit
def _count_pairs(indices, counts, PAIRS: tl.constexpr, TILE: tl.constexpr):
    """Counts the pairs of one expert."""
    expert = tl.program_id(0)
    found = tl.zeros([TILE], tl.int32)
    for start in range(0, PAIRS, TILE):
        pair = start + tl.arange(0, TILE)
        found += (tl.load(indices + pair, mask=pair < PAIRS, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit
def _place_pairs(
    indices,
    counts,
    expert_of_block,
    pair_of_row,
    PAIRS: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Writes the blocks of one expert, which follow those of the experts before it.

    ROWS is the number of rows of a block. COUNT and WIDTH are EXPERTS and ROWS rounded up to powers of two.
    """
    expert = tl.program_id(0)
    other = tl.arange(0, COUNT)
    needed = tl.cdiv(tl.load(counts + other, mask=other < EXPERTS, other=0), ROWS)
    first = tl.sum(tl.where(other < expert, needed, 0), 0)
    count = tl.load(counts + expert)
    end = first + tl.cdiv(count, ROWS)

    placed = first * ROWS
    for start in range(0, PAIRS, TILE):
        pair = start + tl.arange(0, TILE)
        mine = tl.load(indices + pair, mask=pair < PAIRS, other=-1) == expert
        rank = tl.cumsum(mine.to(tl.int32), 0)  # from 1
        tl.store(pair_of_row + placed + rank - 1, pair, mask=mine)
        placed += tl.sum(mine.to(tl.int32), 0)
    spare = placed + tl.arange(0, WIDTH)
    tl.store(pair_of_row + spare, tl.full([WIDTH], -1, tl.int32), mask=spare < end * ROWS)

    upto = tl.where(expert == EXPERTS - 1, BLOCKS, end)  # the last expert marks the blocks that are not needed
    for start in range(first, upto, TILE):
        block = start + tl.arange(0, TILE)
        tl.store(expert_of_block + block, tl.where(block < end, expert, -1), mask=block < upto)


def group_pairs(indices: torch.Tensor, experts: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs sorted by expert, in blocks of `rows` pairs that belong to one expert.

    indices  [pairs] int32 or int64: the expert of each pair, -1 for none
    returns  the expert of each block [blocks] int32, -1 for a block that is not needed; and the pair of each row
             [blocks * rows] int32, -1 for none. The rows of a block without an expert are not written

    The number of blocks is the static worst case. The pairs of an expert are in ascending order, so equal inputs are
    grouped equally.
    """
    pairs = indices.numel()
    blocks = blocks_for(pairs, experts, rows)
    counts, expert_of_block, pair_of_row = (
        torch.empty(size, dtype=torch.int32, device=indices.device) for size in (experts, blocks, blocks * rows)
    )
    tile = min(1024, triton.next_power_of_2(max(pairs, 1)))
    wrap_triton(_count_pairs)[(experts,)](indices, counts, PAIRS=pairs, TILE=tile, num_warps=4)
    wrap_triton(_place_pairs)[(experts,)](
        indices,
        counts,
        expert_of_block,
        pair_of_row,
        PAIRS=pairs,
        EXPERTS=experts,
        BLOCKS=blocks,
        ROWS=rows,
        COUNT=triton.next_power_of_2(experts),
        WIDTH=triton.next_power_of_2(rows),
        TILE=tile,
        num_warps=4,
    )
    return expert_of_block, pair_of_row
