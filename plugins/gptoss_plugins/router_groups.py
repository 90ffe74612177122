"""The choices of each token by the router's logits, and the (token, choice) pairs of each expert, for experts_many.py.

It is one kernel, with a program for each expert. Every program makes all choices for itself: that is faster than
waiting for one program that chooses. Then it counts the pairs of all experts, which says where its own blocks begin,
and writes its blocks. The rank of a pair among those of its expert is a running count. The logits and the pairs of all
tokens are in registers, so this is for as many tokens as a batch has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .arch import has_dependent_launch
from .dependent_launch import wait_then_let_next_start
from .grouping import Grouped, blocks_for


@triton.jit
def choose(left, position, CHOICES: tl.constexpr, WIDTH: tl.constexpr):
    """Choices [T, WIDTH] int32 and their shares [T, WIDTH] of logits `left` [T, COUNT], as the op's reference has them.

    -1 for a token without a position. The first of equal logits wins. The shares of a token whose logits are not all
    numbers are NaN. Such logits are taken out first: threads that reduce them in different orders find different
    maxima, and would not agree on the choices.
    """
    T: tl.constexpr = left.shape[0]
    broken = tl.max((left != left).to(tl.int32), 1) > 0
    left = tl.where(left == left, left, float("-inf"))
    expert = tl.arange(0, left.shape[1])
    which = tl.arange(0, WIDTH)
    chosen = tl.full([T, WIDTH], -1, tl.int32)
    share = tl.zeros([T, WIDTH], tl.float32)
    largest = tl.max(left, 1)
    for choice in tl.static_range(CHOICES):
        best, at = tl.max(left, 1, return_indices=True)
        is_it = (which == choice)[None, :]
        chosen = tl.where(is_it, at[:, None], chosen)
        share = tl.where(is_it, tl.exp(best - largest)[:, None], share)
        left = tl.where(expert[None, :] == at[:, None], float("-inf"), left)
    chosen = tl.where((position >= 0)[:, None], chosen, -1)
    share = tl.where(broken[:, None], float("nan"), share / tl.sum(share, 1)[:, None])
    return chosen, share


@triton.jit
def _group_pdl(
    logits,
    positions,
    chosen,
    shares,
    expert_of_block,
    pair_of_row,
    TOKENS: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEIGHT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The blocks of one expert, and by the first program all choices and their shares [TOKENS, CHOICES].

    COUNT, WIDTH and HEIGHT are EXPERTS, CHOICES and TOKENS rounded up to powers of two.
    """
    zero = wait_then_let_next_start(EARLY)
    logits += zero
    positions += zero
    chosen += zero
    shares += zero
    expert_of_block += zero
    pair_of_row += zero
    mine = tl.program_id(0)
    token = tl.arange(0, HEIGHT)
    expert = tl.arange(0, COUNT)
    there = token < TOKENS
    left = tl.load(
        logits + token[:, None] * EXPERTS + expert[None, :],
        mask=there[:, None] & (expert < EXPERTS)[None, :],
        other=float("-inf"),
    )
    position = tl.load(positions + token, mask=there, other=-1)
    choice, share = choose(left, position, CHOICES, WIDTH)
    which = tl.arange(0, WIDTH)
    pair = token[:, None] * CHOICES + which[None, :]
    if mine == 0:
        real = there[:, None] & (which < CHOICES)[None, :]
        tl.store(chosen + pair, choice, mask=real)
        tl.store(shares + pair, share, mask=real)
    flat = choice.reshape(HEIGHT * WIDTH)
    found = tl.sum((expert[:, None] == flat[None, :]).to(tl.int32), 1)
    needed = (found + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(expert < mine, needed, 0), 0)
    count = tl.sum(tl.where(expert == mine, found, 0), 0)
    end = first + (count + BLOCK_M - 1) // BLOCK_M

    of_mine = flat == mine
    rank = tl.cumsum(of_mine.to(tl.int32), 0)  # from 1
    tl.store(pair_of_row + first * BLOCK_M + rank - 1, pair.reshape(HEIGHT * WIDTH), mask=of_mine)
    spare = first * BLOCK_M + count + tl.arange(0, BLOCK_M)
    tl.store(pair_of_row + spare, tl.full([BLOCK_M], -1, tl.int32), mask=spare < end * BLOCK_M)
    upto = tl.where(mine == EXPERTS - 1, BLOCKS, end)  # the last expert marks the blocks that are not needed
    for start in range(first, upto, BLOCK_M):
        block = start + tl.arange(0, BLOCK_M)
        tl.store(expert_of_block + block, tl.where(block < end, mine, -1), mask=block < upto)


def group_by_logits(logits: torch.Tensor, positions: torch.Tensor, choices: int, block: int, arch: str) -> Grouped:
    """The pairs that the router's logits [T, E] float32 choose. positions [T] int64, -1: goes to no expert."""
    tokens, experts = logits.shape
    blocks = blocks_for(tokens * choices, experts, block)
    found = Grouped(
        chosen=logits.new_empty((tokens, choices), dtype=torch.int32),
        shares=logits.new_empty((tokens, choices)),
        expert_of_block=logits.new_empty(blocks, dtype=torch.int32),
        pair_of_row=logits.new_empty(blocks * block, dtype=torch.int32),
    )
    wrap_triton(_group_pdl)[(experts,)](
        logits,
        positions,
        *found,
        TOKENS=tokens,
        EXPERTS=experts,
        CHOICES=choices,
        BLOCKS=blocks,
        BLOCK_M=block,
        COUNT=triton.next_power_of_2(experts),
        WIDTH=triton.next_power_of_2(choices),
        HEIGHT=triton.next_power_of_2(tokens),
        EARLY=has_dependent_launch(arch),
        num_warps=4 if experts * tokens * choices <= 32 * 256 else 8,
    )
    return found
