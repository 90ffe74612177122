"""The norm, the router and the choices of a chunk's tokens, in one kernel that reads them from memory once.

A program has M tokens. It adds up their squares and their products with the router's rows, and divides both by the norm
at the end, so one pass makes the logits. It makes the choices (router_groups.py says how), and a second pass, from the
L2 cache, writes the normalised tokens in the dtype of the weights and in the order of the words (mxfp4_words.py). In
plain PyTorch norm, router, sort, softmax and reordering would read and write the tokens four times, and the product in
float32, which is the contract's, would not use tensor cores.

The product is float32 by products of TF32, which has 10 bits of a fraction. A weight of 16 bits fits TF32. A token is
split into its upper bits, which fit TF32, and the rest, of which TF32 drops the last two or three bits. So two products
have an error near that of float32. Weights in float32 take three.

Limits: all logits of M tokens are in registers, so this is for up to MOST_EXPERTS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .arch import has_dependent_launch
from .dependent_launch import wait_then_let_next_start
from .mxfp4_words import padded
from .router_groups import choose

TOKENS_OF_A_PROGRAM = 16  # the fewest of a product on tensor cores
MOST_EXPERTS = 256
STEPS = 4  # groups of words that the second pass takes at a time: more loads wait together
STEPS_OF_ONE = 32  # where a group is one word


@triton.jit
def _route_chunk_pdl(
    x,
    norm_weight,
    weight,
    bias,
    positions,
    arranged,
    chosen,
    shares,
    TOKENS: tl.constexpr,
    HIDDEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
    EPS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    STEPS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The choices of M tokens [T, CHOICES], their shares, and the tokens [T, STRIDE]. COUNT and WIDTH are EXPERTS and
    CHOICES rounded up to powers of two. The first pass takes BLOCK elements of a token at a time, the second one STEPS
    groups of 8 WORDS elements."""
    zero = wait_then_let_next_start(EARLY)
    x += zero
    positions += zero
    arranged += zero
    chosen += zero
    shares += zero
    token = tl.program_id(0) * M + tl.arange(0, M)
    there = token < TOKENS
    k = tl.arange(0, BLOCK)
    expert = tl.arange(0, COUNT)
    x += token.to(tl.int64)[:, None] * HIDDEN
    rows = weight + tl.minimum(expert, EXPERTS - 1)[:, None] * HIDDEN + k[None, :]
    acc = tl.zeros([M, COUNT], tl.float32)
    squares = tl.zeros([M], tl.float32)
    for start in range(0, HIDDEN, BLOCK):
        inside = start + k < HIDDEN
        value = tl.load(x + (start + k)[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        squares += tl.sum(value * value, 1)
        value *= tl.load(norm_weight + start + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        row = tl.load(rows + start, mask=inside[None, :], other=0.0)
        if row.dtype == tl.float32:
            acc = tl.dot(value, tl.trans(row), acc, input_precision="tf32x3")
        else:
            row = tl.trans(row.to(tl.float32))
            high = (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            acc = tl.dot(high, row, acc, input_precision="tf32")
            acc = tl.dot(value - high, row, acc, input_precision="tf32")
    root = tl.rsqrt(squares / HIDDEN + EPS)

    added = tl.load(bias + tl.minimum(expert, EXPERTS - 1)).to(tl.float32)
    logits = tl.where((expert < EXPERTS)[None, :], acc * root[:, None] + added[None, :], float("-inf"))
    position = tl.load(positions + token, mask=there, other=-1)
    choice, share = choose(logits, position, CHOICES, WIDTH)
    which = tl.arange(0, WIDTH)
    cells = token[:, None] * CHOICES + which[None, :]
    writable = there[:, None] & (which < CHOICES)[None, :]
    tl.store(chosen + cells, choice, mask=writable)
    tl.store(shares + cells, share, mask=writable)

    STEP: tl.constexpr = 8 * WORDS * STEPS
    i = tl.arange(0, STEP)
    arranged += token.to(tl.int64)[:, None] * STRIDE + i[None, :]
    for start in range(0, STRIDE, STEP):
        inside = start + i < HIDDEN
        value = tl.load(x + (start + i)[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        factor = tl.load(norm_weight + start + i, mask=inside, other=0.0).to(tl.float32)
        value *= root[:, None] * factor[None, :]
        value = value.reshape(M, STEPS, WORDS, 8).permute(0, 1, 3, 2).reshape(M, STEP).to(arranged.dtype.element_ty)
        tl.store(arranged + start, value, mask=there[:, None] & (start + i < STRIDE)[None, :])


def route_chunk(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    choices: int,
    eps: float,
    words: int,
    arch: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For x [T, H] float32: its norm [T, padded(H, words)] in the order of the words; the experts [T, K] int32 that
    each token chooses, -1 for padding; and their shares [T, K] float32."""
    (tokens, hidden), experts = x.shape, weight.size(0)
    arranged = x.new_empty((tokens, padded(hidden, words)), dtype=norm_weight.dtype)
    chosen, shares = x.new_empty((tokens, choices), dtype=torch.int32), x.new_empty((tokens, choices))
    wrap_triton(_route_chunk_pdl)[(triton.cdiv(tokens, TOKENS_OF_A_PROGRAM),)](
        x,
        norm_weight,
        weight,
        bias,
        positions,
        arranged,
        chosen,
        shares,
        TOKENS=tokens,
        HIDDEN=hidden,
        EXPERTS=experts,
        CHOICES=choices,
        EPS=eps,
        COUNT=max(16, triton.next_power_of_2(experts)),
        WIDTH=triton.next_power_of_2(choices),
        M=TOKENS_OF_A_PROGRAM,
        BLOCK=64 if experts <= 64 else 32,
        STRIDE=arranged.size(1),
        WORDS=words,
        STEPS=STEPS_OF_ONE if words == 1 else STEPS,
        EARLY=has_dependent_launch(arch),
        num_warps=4,
        num_stages=3,
    )
    return arranged, chosen, shares
