"""The node of onnxruntime's QMoE for MXFP4 weights. The model and the probe use the same one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import MICROSOFT, Nodes


def qmoe(
    g: Nodes, x: str, logits: str, packed: Sequence[str], experts: int, choices: int, alpha: float, limit: float
) -> str:
    """x [T, H] and router logits [T, E] to [T, H].

    packed: blocks (repack.py), E8M0 scales and bias of gate_up, then of down. The op chooses the experts itself. It
    requires a global scale for each expert and matrix; MXFP4 has none, so they are 1.
    """
    ones = g.constant(np.ones(experts), np.float32)
    return g.add(
        "QMoE", x, logits, *packed, *[""] * 7, ones, ones, domain=MICROSOFT, k=choices, quant_type="fp4",
        expert_weight_bits=4, block_size=32, normalize_routing_weights=1, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=alpha, activation_beta=1.0, swiglu_limit=limit,
    )  # fmt: skip
