"""The second half of a layer in a training step: what gptoss::experts_sublayer computes, with LoRA deltas, and its
gradients.

Pairs of a token and an expert are sorted by expert once. Each product is gptoss::grouped_linear over all pairs, which
reads the packed weights; backward reads them again and keeps no unpacked matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..decoder import Experts, Mlp, RMSNorm
from ..ops.experts import swiglu
from ..ops.experts_sublayer import route
from ..ops.norm import rms_norm
from .deltas import ExpertDelta, Gradients
from .norm import rms_norm_backward
from .router import Pairs, router_backward, sort_pairs


class Activations(NamedTuple):
    """What backward reads: the input x [T, H] float32, the router's weights and choices [T, K], the pairs, and the
    results [N, 2 I] of the first product."""

    x: torch.Tensor
    weights: torch.Tensor
    indices: torch.Tensor
    pairs: Pairs
    gate_up: torch.Tensor


def forward(
    layer: Mlp, norm: RMSNorm, deltas: Mapping[str, ExpertDelta], x: torch.Tensor
) -> tuple[torch.Tensor, Activations]:
    """x [T, H] float32 to x plus the experts, and what backward reads. deltas: by matrix, where it has factors."""
    normed = rms_norm(x, norm.weight, norm.eps)
    weights, indices = route(normed, layer.router.weight, layer.router.bias, layer.choices)
    pairs = sort_pairs(indices, layer.router.weight.size(0))
    rows = normed.to(norm.weight.dtype)[pairs.token]
    gate_up = _linear(layer.experts, "gate_up", rows, pairs, deltas)
    act = swiglu(gate_up.float(), layer.alpha, layer.limit).to(rows.dtype)
    down = _linear(layer.experts, "down", act, pairs, deltas)
    mixed = (down[pairs.place].float() * weights.unsqueeze(-1)).sum(dim=1)
    return x + mixed, Activations(x, weights, indices, pairs, gate_up)


def backward(
    layer: Mlp,
    norm: RMSNorm,
    deltas: Mapping[str, ExpertDelta],
    kept: Activations,
    grad: torch.Tensor,
    gradients: Gradients,
) -> torch.Tensor:
    """The gradient of x for a gradient of the result, both [T, H] float32; those of the factors go to `gradients`.

    The gradient of a pair's weight is grad . down. The product with down is not made again for it: down is linear in
    act but for its bias, so that it is  (W^T grad) . act + grad . bias."""
    pairs, dtype = kept.pairs, norm.weight.dtype
    share = kept.weights.flatten()[pairs.choice].unsqueeze(-1)
    hidden = kept.gate_up.float()
    act = swiglu(hidden, layer.alpha, layer.limit)
    rows = grad.to(dtype)[pairs.token]  # without the pair's share
    grad_act = _linear_backward(layer.experts, "down", rows, act.to(dtype), pairs, deltas, gradients, share).float()
    bias = layer.experts.by_argument()["down_bias"]
    assert bias is not None
    of_pairs = (grad_act * act).sum(dim=-1) + (rows.float() * bias[pairs.expert].float()).sum(dim=-1)
    grad_gate_up = (swiglu_backward(grad_act * share, hidden, layer.alpha, layer.limit)).to(dtype)
    normed = rms_norm(kept.x, norm.weight, norm.eps).to(dtype)[pairs.token]
    grad_rows = _linear_backward(layer.experts, "gate_up", grad_gate_up, normed, pairs, deltas, gradients, None)
    grad_normed = grad_rows[pairs.place].float().sum(dim=1)
    grad_normed = grad_normed + router_backward(of_pairs[pairs.place], kept.weights, kept.indices, layer.router.weight)
    return grad + rms_norm_backward(grad_normed, kept.x, norm.weight, norm.eps)


def swiglu_backward(grad: torch.Tensor, hidden: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """The gradient of interleaved gate and up [..., 2 I] for that of swiglu's result [..., I], float32. Where a number
    is clamped its gradient is zero."""
    gate, up = hidden[..., 0::2], hidden[..., 1::2]
    inside = (gate <= limit).float(), (up.abs() <= limit).float()
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    sigmoid = torch.sigmoid(alpha * gate)
    grad_gate = grad * (up + 1) * sigmoid * (1 + alpha * gate * (1 - sigmoid)) * inside[0]
    grad_up = grad * gate * sigmoid * inside[1]
    return torch.stack((grad_gate, grad_up), dim=-1).flatten(-2)


def _linear(
    experts: Experts, matrix: str, x: torch.Tensor, pairs: Pairs, deltas: Mapping[str, ExpertDelta]
) -> torch.Tensor:
    weight, scales, table, bias = _stored(experts, matrix)
    out = torch.ops.gptoss.grouped_linear(x, weight, scales, table, bias, None, pairs.ends, False)
    delta = deltas.get(f"{matrix}_proj")
    return out if delta is None else delta.add(out, x, pairs.ends)


def _linear_backward(
    experts: Experts,
    matrix: str,
    grad: torch.Tensor,
    x: torch.Tensor,
    pairs: Pairs,
    deltas: Mapping[str, ExpertDelta],
    gradients: Gradients,
    share: torch.Tensor | None,
) -> torch.Tensor:
    weight, scales, table, _ = _stored(experts, matrix)
    grad_x = torch.ops.gptoss.grouped_linear(grad, weight, scales, table, None, None, pairs.ends, True)
    delta = deltas.get(f"{matrix}_proj")
    return grad_x if delta is None else delta.backward(grad, x, pairs.ends, gradients, share, grad_x)


def _stored(
    experts: Experts, matrix: str
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    by_argument = experts.by_argument()
    weight, bias = by_argument[f"{matrix}_weight"], by_argument[f"{matrix}_bias"]
    assert weight is not None and bias is not None
    return weight, by_argument[f"{matrix}_scales"], by_argument[f"{matrix}_table"], bias
