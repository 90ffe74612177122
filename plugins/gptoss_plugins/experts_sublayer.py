"""gptoss_triton::experts_sublayer: `gptoss::experts_sublayer` for NVIDIA GPUs.

The contract is gptoss_export/ops/experts_sublayer.py's. A chunk is PyTorch around the experts' kernels. Few
pairs are three kernels: `_router_pdl`, and `_gate_up_pdl` and `_down_pdl` of experts_few.py, the last of
which adds the residual.

All that the router costs is the time until its logits are there, while the memory has nothing to do. So it
is spread over programs of a few experts, which have their rows in registers when x comes; one more program
brings x into the order of the experts' kernels; and top-k is left to those. It lets them start only when
it has waited itself: they have nothing to do before the routing is known, and their programs would crowd
where the kernel before leaves room, and stay unevenly spread over the chip.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Cut, Kernel, parts
from gptoss_export.model.ops.experts_sublayer import compose

from .dependent_launch import early, wait_then_let_next_start
from .experts import cut_experts, mxfp4_experts
from .experts_few import FEW_PAIRS, UNIT, Down, GateUp, empty_arranged, exact, few, place_of, power_for
from .rows import ROW_OPTIONS, Rows, dot_rows_of_norm, load_rows

ROUTER = Rows(rows=4, length=1024, warps=4)


@triton.jit
def _router_pdl(
    x, norm_weight, weight, bias, logits, arranged, undo,
    HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, EPS: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """R logits of one token; the last program of a token arranges it. WIDTH: HIDDEN up to a power of two."""
    token = tl.program_id(1)
    x += token * HIDDEN
    if tl.program_id(0) < tl.num_programs(0) - 1:
        row = tl.program_id(0) * R + tl.arange(0, R)
        safe = tl.minimum(row, EXPERTS - 1)
        pieces = load_rows(weight, safe, HIDDEN, BLOCK)
        added = tl.load(bias + safe).to(tl.float32)
        x += wait_then_let_next_start(EARLY)
        y = dot_rows_of_norm(pieces, x, norm_weight, HIDDEN, BLOCK, EPS) + added
        tl.store(logits + token * EXPERTS + row, y, mask=row < EXPERTS)
    else:
        i = tl.arange(0, WIDTH)
        factor = tl.load(norm_weight + i, mask=i < HIDDEN, other=0.0).to(tl.float32)
        x += wait_then_let_next_start(EARLY)
        value = tl.load(x + i, mask=i < HIDDEN, other=0.0)
        root = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + EPS)
        value *= factor * root
        power = power_for(tl.max(tl.abs(value), 0), EXACT)
        cells = token * HIDDEN + place_of(i, HIDDEN, EXACT)
        tl.store(arranged + cells, (value * power).to(arranged.dtype.element_ty), mask=i < HIDDEN)
        tl.store(undo + token, 1.0 / power * UNIT)


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
    tiles: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::experts_sublayer`, the same result; tiles and arch as in gptoss_export/kernel.py."""
    weights = (gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias)
    (tokens, hidden), experts = x.shape, router_weight.size(0)
    if tokens * choices > FEW_PAIRS:
        return compose(
            partial(mxfp4_experts, tiles=tiles, arch=arch), x, norm_weight, router_weight, router_bias, *weights,
            positions, choices, alpha, limit, eps,
        )  # fmt: skip
    router, *inner = parts(tiles, Rows, GateUp, Down)
    x = x.contiguous()
    arranged, undo = empty_arranged(x, norm_weight.dtype)
    logits = x.new_empty((tokens, experts))
    wrap_triton(_router_pdl)[(triton.cdiv(experts, router.rows) + 1, tokens)](
        x, norm_weight, router_weight, router_bias, logits, arranged, undo,
        HIDDEN=hidden, EXPERTS=experts, EPS=eps, R=router.rows, BLOCK=router.length,
        WIDTH=triton.next_power_of_2(hidden), EXACT=exact(norm_weight.dtype), EARLY=early(arch),
        num_warps=router.warps,
    )  # fmt: skip
    return few(
        arranged, undo, logits, positions.contiguous(), *weights, x, choices, alpha, limit, *inner, arch, experts
    )


def cut(
    x, norm_weight, router_weight, router_bias, gate_up_blocks, gate_up_scales, gate_up_bias,
    down_blocks, down_scales, down_bias, positions, choices, alpha, limit, eps,
) -> Cut:  # fmt: skip
    (tokens, hidden), dtype = x.shape, norm_weight.dtype
    inner = cut_experts(tokens, choices, down_blocks, dtype)
    if tokens * choices > FEW_PAIRS:
        return inner
    return replace(
        inner,
        name="experts_step",
        default={"router": ROUTER.fit(hidden), **inner.default},
        options={"router": ROW_OPTIONS, **inner.options},
    )


KERNEL = Kernel(experts_sublayer, cut)
