"""The nodes of a traced decode program as ONNX nodes: the table of all that a graph may hold.

A converter takes the writer and the node's arguments, values in place of nodes, and returns a value or a
tuple of them. The program was traced for one token a sequence; its ops are the sublayers, which know nothing of
that, so that the same nodes serve any number of tokens: what is [B] there is [B, S] here, and a row of the residual
stream [T, H] is one of T = B S tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from .compile import LOGITS_FROM, LOGITS_TO
from .writer import Cache, Experts, Writer

aten, gptoss = torch.ops.aten, torch.ops.gptoss


def _same(w: Writer, x: Any, *_: Any) -> Any:
    return x


def _attention_sublayer(
    w: Writer, x, norm_weight, qkv_weight, qkv_bias, o_weight, o_bias, sinks, k_cache: Cache, v_cache: Cache, cos, sin,
    slots, positions, window: int, scale: float, eps: float,
) -> Any:  # fmt: skip
    c = w.config
    normed, x = w.norm(x, norm_weight, eps)
    sizes = [heads * c.head_dim for heads in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)]
    out = w.attention(w.linear(normed, qkv_weight, qkv_bias), sizes, k_cache, v_cache, cos, sin, sinks, window, scale)
    return w.project(x, out, o_weight, o_bias)


def _experts_sublayer(
    w: Writer, x, norm_weight, router_weight, router_bias, gate_up_blocks, gate_up_scales, gate_up_bias,
    down_blocks, down_scales, down_bias, positions, choices: int, alpha: float, limit: float, eps: float,
) -> Any:  # fmt: skip
    normed, x = w.norm(x, norm_weight, eps)
    packed = Experts(gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias)
    return w.experts(x, normed, w.linear(normed, router_weight, router_bias), packed, choices, alpha, limit)


def _unembed(w: Writer, x, norm_weight, weight, eps: float) -> tuple[str, None, None, None]:
    """The logits alone, of the tokens that are asked for: runtimes for ONNX choose for themselves."""
    normed, _ = w.norm(x, norm_weight, eps)
    rows = w.g.reshape(normed, w.batch, -1, w.config.hidden_size)
    rows = w.g.slice(rows, LOGITS_FROM, LOGITS_TO, 1)
    logits = w.linear(w.g.reshape(rows, -1, w.config.hidden_size), weight)
    shape = w.g.add("Concat", w.batch, w.g.constant([-1, w.config.vocab_size]), axis=0)
    return w.g.add("Reshape", logits, shape, outputs=["logits"]), None, None, None


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.embedding.default: lambda w, weight, tokens: w.embedding(weight, tokens),
    aten.to.dtype: _same,  # the residual stream is float32 from the embedding on
    aten.unsqueeze.default: _same,  # one token a sequence: no dimension that is here
    aten.flatten.using_ints: _same,
    aten._assert_tensor_metadata.default: lambda *_: None,  # says nothing that the trace does not
    operator.getitem: lambda w, items, index: items[index],
    gptoss.rotary.default: lambda w, positions, inv_freq, concentration: w.tables(inv_freq, concentration),
    gptoss.attention_sublayer.default: _attention_sublayer,
    gptoss.experts_sublayer.default: _experts_sublayer,
    gptoss.unembed.default: _unembed,
}
