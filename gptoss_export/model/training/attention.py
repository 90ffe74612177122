"""The first half of a layer in a training step: what gptoss::attention_sublayer computes, for packed sequences, with
LoRA deltas, and its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..decoder import Attention, RMSNorm, Rope
from ..ops.norm import rms_norm
from .deltas import Delta, Gradients
from .norm import rms_norm_backward

_QKV = ("q_proj", "k_proj", "v_proj")


class Activations(NamedTuple):
    """What backward reads: the input x [T, H], and the arguments and results of gptoss::packed_attention."""

    x: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    log_total: torch.Tensor


def forward(
    layer: Attention,
    norm: RMSNorm,
    deltas: Mapping[str, Delta],
    x: torch.Tensor,
    rope: Rope,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, Activations]:
    """x [T, H] float32 to x plus attention, and what backward reads. deltas: by projection, where it has factors."""
    normed = rms_norm(x, norm.weight, norm.eps).to(norm.weight.dtype)
    qkv = F.linear(normed, layer.qkv_proj.weight, layer.qkv_proj.bias)
    parts = [
        deltas[name].add(part, normed) if name in deltas else part
        for name, part in zip(_QKV, qkv.split(_widths(layer), dim=1), strict=True)
    ]
    query, key, value = (part.reshape(x.size(0), -1, layer.head_dim) for part in parts)
    query, key = torch.ops.gptoss.rotate(query, *rope), torch.ops.gptoss.rotate(key, *rope)
    value = value.contiguous()
    out, log_total = torch.ops.gptoss.packed_attention(
        query, key, value, layer.sinks, positions, layer.window, layer.scale
    )
    flat = out.view(x.size(0), -1)
    projected = F.linear(flat, layer.o_proj.weight, layer.o_proj.bias)
    if "o_proj" in deltas:
        projected = deltas["o_proj"].add(projected, flat)
    return x + projected, Activations(x, query, key, value, out, log_total)


def backward(
    layer: Attention,
    norm: RMSNorm,
    deltas: Mapping[str, Delta],
    kept: Activations,
    rope: Rope,
    positions: torch.Tensor,
    grad: torch.Tensor,
    gradients: Gradients,
) -> torch.Tensor:
    """The gradient of x for a gradient of the result, both [T, H] float32; those of the factors go to `gradients`."""
    x, flat, (cos, sin) = kept.x, kept.out.view(grad.size(0), -1), rope
    g = grad.to(norm.weight.dtype)
    grad_out = g @ layer.o_proj.weight
    if "o_proj" in deltas:
        grad_out = grad_out + deltas["o_proj"].backward(g, flat, gradients)
    dq, dk, dv, _ = torch.ops.gptoss.packed_attention_backward(
        grad_out.view(kept.out.shape),
        kept.query,
        kept.key,
        kept.value,
        layer.sinks,
        kept.out,
        kept.log_total,
        positions,
        layer.window,
        layer.scale,
    )
    # A rotation backward is the rotation by the negative angle; the concentration is in both cos and sin.
    back = torch.ops.gptoss.rotate
    parts = [part.flatten(1) for part in (back(dq, cos, -sin), back(dk, cos, -sin), dv)]
    normed = rms_norm(x, norm.weight, norm.eps).to(norm.weight.dtype)
    grad_normed = torch.cat(parts, dim=1) @ layer.qkv_proj.weight
    for name, part in zip(_QKV, parts, strict=True):
        if name in deltas:
            grad_normed = grad_normed + deltas[name].backward(part, normed, gradients)
    return grad + rms_norm_backward(grad_normed.float(), x, norm.weight, norm.eps)


def _widths(layer: Attention) -> list[int]:
    """Columns of q, k and v."""
    q = layer.o_proj.in_features
    kv = (layer.qkv_proj.out_features - q) // 2
    return [q, kv, kv]
