"""gptoss_triton::experts: `gptoss::experts` for NVIDIA GPUs, in Triton.

The contract (shapes, SwiGLU, routing, -1) is in gptoss_export/model/ops/experts.py, the formats of the weights in
gptoss_export/model/expert_weights.py. Codes of MXFP4 are interleaved, and the kernels unpack codes in registers. Up to
FEW_PAIRS (token, choice) pairs are computed by experts_few.py, more by experts_many.py.
"""

from __future__ import annotations

import torch
from torch.library import triton_op

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments

from .arranged import arrange
from .experts_few import FEW_PAIRS, Down, GateUp, Routing, few_pairs_space, launch_few_pairs
from .experts_many import Block, Tile, launch_many_pairs, many_pairs_space
from .grouping import Grouped, group_pairs
from .mxfp4_words import arrange_words
from .stored import Experts, stored_as
from .stored_product import order_for


@triton_op("gptoss_triton::experts", mutates_args={})
def experts(
    x: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_indices: torch.Tensor,
    gate_up_weight: torch.Tensor,
    gate_up_scales: torch.Tensor | None,
    gate_up_table: torch.Tensor | None,
    gate_up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_scales: torch.Tensor | None,
    down_table: torch.Tensor | None,
    down_bias: torch.Tensor,
    alpha: float,
    limit: float,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::experts`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    experts = Experts(
        gate_up_weight=gate_up_weight,
        gate_up_scales=gate_up_scales,
        gate_up_table=gate_up_table,
        gate_up_bias=gate_up_bias,
        down_weight=down_weight,
        down_scales=down_scales,
        down_table=down_table,
        down_bias=down_bias,
        alpha=alpha,
        limit=limit,
    )
    weights, indices = routing_weights.contiguous(), expert_indices.contiguous()
    if indices.numel() <= FEW_PAIRS:
        gate_up, down = unflatten(config, GateUp, Down)
        arranged, routing = arrange(x, experts.stored, arch), Routing(weights, indices, indices.size(1))
        out = launch_few_pairs(arranged, routing, experts, gate_up, down, arch)
    else:
        block, gate_up, down = unflatten(config, Block, Tile, Tile)
        grouped = Grouped(indices, weights, *group_pairs(indices.flatten(), experts.count, block.pairs))
        arranged_words = arrange_words(x, order_for(experts.stored, gate_up.words))
        out = launch_many_pairs(arranged_words, grouped, experts, block, gate_up, down, arch)
    return out.to(x.dtype)


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call: of the kernels for few pairs, or for many."""
    (tokens, choices), dtype = arguments["expert_indices"].shape, arguments["x"].dtype
    (experts, hidden), inter = arguments["down_bias"].shape, arguments["gate_up_bias"].size(1) // 2
    stored = stored_as(arguments["down_scales"], inter)
    space = few_pairs_space if tokens * choices <= FEW_PAIRS else many_pairs_space
    return space(stored, tokens, choices, experts, hidden, inter, dtype)


KERNEL = Kernel(experts, config_space, interleaved=("gate_up", "down"))
