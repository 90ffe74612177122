"""gptoss_triton::mxfp4_experts: `gptoss::mxfp4_experts` for NVIDIA GPUs, in Triton.

The contract (shapes, SwiGLU, routing, -1) is gptoss_export/ops/experts.py's, the MXFP4 layout is
gptoss_export/mxfp4.py's. Weights are read as the checkpoint stores them and unpacked in registers. Two
regimes, by the number of (token, choice) pairs: experts_few.py and experts_many.py.
"""

from __future__ import annotations

import torch
from torch.library import triton_op

from gptoss_export.kernels.kernel import Cut, Kernel, parts

from .experts_few import FEW_PAIRS, Down, GateUp, arrange, cut_few, few
from .experts_many import Blocks, Product, cut_many, many


@triton_op("gptoss_triton::mxfp4_experts", mutates_args={})
def mxfp4_experts(
    x: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_indices: torch.Tensor,
    gate_up_blocks: torch.Tensor,
    gate_up_scales: torch.Tensor,
    gate_up_bias: torch.Tensor,
    down_blocks: torch.Tensor,
    down_scales: torch.Tensor,
    down_bias: torch.Tensor,
    alpha: float,
    limit: float,
    tiles: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::mxfp4_experts`, the same result; tiles and arch as in gptoss_export/kernel.py."""
    weights = (gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias)
    routing = routing_weights.contiguous(), expert_indices.contiguous()
    if expert_indices.numel() <= FEW_PAIRS:
        out = few(*arrange(x), *routing, *weights, None, expert_indices.size(1), alpha, limit, *parts(tiles, GateUp, Down), arch)
    else:
        out = many(x, *routing, *weights, alpha, limit, *parts(tiles, Blocks, Product, Product), arch)
    return out.to(x.dtype)


def cut_experts(tokens: int, choices: int, down_blocks: torch.Tensor, dtype: torch.dtype) -> Cut:
    """Of one call: `tokens` of `choices` each, x in `dtype`."""
    experts, hidden, groups, _ = down_blocks.shape
    if tokens * choices <= FEW_PAIRS:
        return cut_few(tokens, choices, experts, hidden, groups * 32, dtype)
    return cut_many(tokens * choices, experts, hidden, groups * 32, dtype)


def cut(
    x, routing_weights, expert_indices, gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales,
    down_bias, alpha, limit,
) -> Cut:  # fmt: skip
    return cut_experts(*expert_indices.shape, down_blocks, x.dtype)


KERNEL = Kernel(mxfp4_experts, cut)
