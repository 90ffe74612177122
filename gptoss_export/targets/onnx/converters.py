"""The nodes of a traced decode program as ONNX nodes: the table of all that a graph may hold.

A converter takes the `Export` and the node's arguments, values in place of nodes, and returns a value or a
tuple of them. The program was traced for one token a sequence; its ops are the sublayers, which know nothing of
that, so that the same nodes serve any number of tokens: what is [B] there is [B, S] here, and a row of the residual
stream [T, H] is one of T = B S tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto

if TYPE_CHECKING:
    from .export import Export

aten, gptoss = torch.ops.aten, torch.ops.gptoss


@dataclass(frozen=True)
class Cache:
    """A layer's cache of keys or values: the names of the graph's input and output for it."""

    past: str
    present: str


def _embedding(e: Export, weight: str, tokens: str) -> str:
    rows = e.g.cast(e.g.add("Gather", e.stored(weight), tokens), TensorProto.FLOAT)
    return e.g.reshape(rows, -1, e.config.hidden_size)


def _same(e: Export, x: Any, *_: Any) -> Any:
    return x


def _rotary(e: Export, positions: str, inv_freq: str, concentration: float) -> tuple[str, str]:
    """Tables by position in place of values by token, because GroupQueryAttention rotates by itself."""
    places = e.g.constant(np.arange(e.max_context + 1)[:, None], np.float32)  # an idle sequence may be full
    angles = e.g.add("Mul", places, e.g.reshape(e.weight(inv_freq), 1, -1))
    scale = e.g.constant(concentration, np.float32)
    return tuple(e.g.add("Mul", e.g.add(turn, angles), scale) for turn in ("Cos", "Sin"))


def _norm(e: Export, x: str, weight: str, eps: float) -> str:
    mean = e.g.reduce("ReduceMean", e.g.add("Mul", x, x), -1, keepdims=1)
    root = e.g.add("Sqrt", e.g.add("Add", mean, e.g.constant(eps, np.float32)))
    return e.g.add("Mul", e.g.add("Div", x, root), e.weight(weight))


def _attention_sublayer(
    e: Export, x, norm_weight, qkv_weight, qkv_bias, o_weight, o_bias, sinks, k_cache: Cache, v_cache: Cache, cos, sin,
    slots, positions, window: int, scale: float, eps: float,
) -> str:  # fmt: skip
    g, c = e.g, e.config
    qkv = g.add("Gemm", _norm(e, x, norm_weight, eps), e.weight(qkv_weight), e.weight(qkv_bias), transB=1)
    sizes = [heads * c.head_dim for heads in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)]
    parts = g.add("Split", qkv, g.constant(sizes), outputs=3, axis=1)
    query, key, value = (g.reshape(part, e.batch, -1, size) for part, size in zip(parts, sizes, strict=True))
    out = e.attention(query, key, value, k_cache, v_cache, cos, sin, e.weight(sinks), window, scale)
    out = g.reshape(out, -1, sizes[0])
    return g.add("Add", x, g.add("Gemm", out, e.weight(o_weight), e.weight(o_bias), transB=1))


def _experts_sublayer(
    e: Export, x, norm_weight, router_weight, router_bias, gate_up_blocks, gate_up_scales, gate_up_bias,
    down_blocks, down_scales, down_bias, positions, choices: int, alpha: float, limit: float, eps: float,
) -> str:  # fmt: skip
    g = e.g
    normed = _norm(e, x, norm_weight, eps)
    logits = g.add("Gemm", normed, e.weight(router_weight), e.weight(router_bias), transB=1)
    best, indices = g.add("TopK", logits, g.constant([choices]), outputs=2)  # of equals the lower index, by its definition
    packed = (gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias)
    mixed = e.experts(normed, g.add("Softmax", best, axis=1), indices, [e.stored(name) for name in packed], alpha, limit)
    return g.add("Add", x, mixed)


def _unembed(e: Export, x, norm_weight, weight, eps: float) -> tuple[str, None, None, None]:
    """The logits alone: runtimes for ONNX choose for themselves."""
    logits = e.g.add("Gemm", _norm(e, x, norm_weight, eps), e.weight(weight), transB=1)
    shape = e.g.add("Concat", e.batch, e.g.constant([-1, e.config.vocab_size]), axis=0)
    return e.g.add("Reshape", logits, shape, outputs=["logits"]), None, None, None


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.embedding.default: _embedding,
    aten.to.dtype: _same,  # the residual stream is float32 from the embedding on
    aten.unsqueeze.default: _same,  # one token a sequence: no dimension that is here
    aten.flatten.using_ints: _same,
    aten._assert_tensor_metadata.default: lambda *_: None,  # says nothing that the trace does not
    operator.getitem: lambda e, items, index: items[index],
    gptoss.rotary.default: _rotary,
    gptoss.attention_sublayer.default: _attention_sublayer,
    gptoss.experts_sublayer.default: _experts_sublayer,
    gptoss.unembed.default: _unembed,
}
