"""gptoss_triton::experts_sublayer: `gptoss::experts_sublayer` for NVIDIA GPUs.

The contract is gptoss_export/ops/experts_sublayer.py's. A chunk is PyTorch around the experts' kernels. Few
pairs are three kernels: `_router_pdl`, which leaves the routing and x as the experts' kernels want it, and
`_gate_up_pdl` and `_down_pdl` of experts_few.py, the last of which adds the residual.

One program routes one token: 32 rows of the router at a time, the first of them asked for before x is
there. It lets the next kernel start only when it has waited itself: that one has nothing to do before the
routing is known, and its programs would crowd where the kernel before leaves room, and stay unevenly spread
over the chip. The logits go through memory once, so that top-k runs within each warp and not across warps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.ops.experts_sublayer import compose

from .dependent_launch import early, wait_then_let_next_start
from .experts import mxfp4_experts
from .experts_few import FEW_PAIRS, UNIT, empty_arranged, exact, few, place_of, power_for
from .rows import Tiles, dot_rows_of_norm, load_rows

TILES = Tiles(rows=32, length=1024, warps=8)
LONG_TILES = TILES._replace(rows=16)  # for routers that are taken in several goes: more would not fit registers


@triton.jit
def _router_pdl(
    x, norm_weight, weight, bias, positions, logits, routing_weights, expert_indices, arranged, undo,
    HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, CHOICES: tl.constexpr, EPS: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr,
    EXACT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token. WIDTH, COUNT, SLOTS: HIDDEN, EXPERTS, CHOICES rounded up to powers of two."""
    token = tl.program_id(0)
    row = tl.arange(0, R)
    pieces = load_rows(weight, tl.minimum(row, EXPERTS - 1), HIDDEN, BLOCK)
    zero = wait_then_let_next_start(EARLY)
    x += token * HIDDEN + zero
    positions += zero
    logits += token * EXPERTS + zero
    for start in tl.static_range(0, EXPERTS, R):
        if start > 0:
            pieces = load_rows(weight, tl.minimum(start + row, EXPERTS - 1), HIDDEN, BLOCK)
        there = start + row < EXPERTS
        added = tl.load(bias + start + row, mask=there, other=0.0).to(tl.float32)
        y = dot_rows_of_norm(pieces, x, norm_weight, HIDDEN, BLOCK, EPS) + added
        tl.store(logits + start + row, y, mask=there)

    i = tl.arange(0, WIDTH)
    value = tl.load(x + i, mask=i < HIDDEN, other=0.0)
    squares = tl.sum(value * value, 0)
    value *= tl.load(norm_weight + i, mask=i < HIDDEN, other=0.0).to(tl.float32)
    value *= tl.rsqrt(squares / HIDDEN + EPS)
    power = power_for(tl.max(tl.abs(value), 0), EXACT)
    cells = token * HIDDEN + place_of(i, HIDDEN, EXACT)
    tl.store(arranged + cells, (value * power).to(arranged.dtype.element_ty), mask=i < HIDDEN)
    tl.store(undo + token, 1.0 / power * UNIT)

    tl.debug_barrier()  # the logits are of all warps
    expert = tl.arange(0, COUNT)
    left = tl.load(logits + expert, mask=expert < EXPERTS, other=float("-inf"))
    slot = tl.arange(0, SLOTS)
    chosen = tl.zeros([SLOTS], tl.int32)
    share = tl.zeros([SLOTS], tl.float32)
    largest = tl.max(left, 0)
    for choice in tl.static_range(CHOICES):
        best, at = tl.max(left, 0, return_indices=True)  # of equal ones the first
        chosen = tl.where(slot == choice, at, chosen)
        share = tl.where(slot == choice, tl.exp(best - largest), share)
        left = tl.where(expert == at, float("-inf"), left)
    chosen = tl.where(tl.load(positions + token) >= 0, chosen, -1)
    cells = token * CHOICES + slot
    tl.store(expert_indices + cells, chosen, mask=slot < CHOICES)
    tl.store(routing_weights + cells, share / tl.sum(share, 0), mask=slot < CHOICES)


@triton_op("gptoss_triton::experts_sublayer", mutates_args={})
def experts_sublayer(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    router_weight: torch.Tensor,
    router_bias: torch.Tensor,
    gate_up_blocks: torch.Tensor,
    gate_up_scales: torch.Tensor,
    gate_up_bias: torch.Tensor,
    down_blocks: torch.Tensor,
    down_scales: torch.Tensor,
    down_bias: torch.Tensor,
    positions: torch.Tensor,
    choices: int,
    alpha: float,
    limit: float,
    eps: float,
) -> torch.Tensor:
    """`gptoss::experts_sublayer`, same arguments, same result."""
    weights = (gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias)
    (tokens, hidden), experts = x.shape, router_weight.size(0)
    if tokens * choices > FEW_PAIRS:
        return compose(
            mxfp4_experts, x, norm_weight, router_weight, router_bias, *weights,
            positions, choices, alpha, limit, eps,
        )  # fmt: skip
    tiles = (TILES if experts <= TILES.rows else LONG_TILES).fit(hidden)
    x = x.contiguous()
    arranged, undo = empty_arranged(x, norm_weight.dtype)
    routing_weights = x.new_empty((tokens, choices))
    expert_indices = x.new_empty((tokens, choices), dtype=torch.int32)
    wrap_triton(_router_pdl)[(tokens,)](
        x, norm_weight, router_weight, router_bias, positions.contiguous(), x.new_empty((tokens, experts)),
        routing_weights, expert_indices, arranged, undo,
        HIDDEN=hidden, EXPERTS=experts, CHOICES=choices, EPS=eps,
        R=min(tiles.rows, triton.next_power_of_2(experts)), BLOCK=tiles.length,
        WIDTH=triton.next_power_of_2(hidden), COUNT=triton.next_power_of_2(experts),
        SLOTS=triton.next_power_of_2(choices), EXACT=exact(norm_weight.dtype), EARLY=early(),
        num_warps=tiles.warps,
    )  # fmt: skip
    return few(arranged, undo, routing_weights, expert_indices, *weights, x, alpha, limit)
