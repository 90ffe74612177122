"""The nodes of a traced decode program as ONNX nodes: all operators that a graph may hold.

A converter is called as the operator is, with the writer before the other arguments, and with values of the ONNX graph
in place of nodes. It returns a value or a tuple of them. An op of this project gets its arguments by name.

The program was traced for one token of each sequence. Its ops are the sublayers, which work on any number of tokens, so
that the same nodes serve a prompt. What is [B] in the trace is [B, S] in the ONNX graph, and rows of the residual
stream [T, H] are the T = B S tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...errors import LoweringError
from ...model.ops import OPS
from .model_files import LOGITS, LOGITS_FROM, LOGITS_TO, CacheNames
from .writer import Attention, ExpertWeights, Stream, Writer

aten = torch.ops.aten
_OP_OF = {op.overload: op for op in OPS.values()}


def convert(writer: Writer, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Write the nodes for one call of an operator in CONVERTERS; returns its result."""
    if target in _OP_OF:
        return CONVERTERS[target](writer, **_OP_OF[target].arguments(args, kwargs))
    return CONVERTERS[target](writer, *args, **kwargs)


def _rotary(writer: Writer, *, positions: Any, inv_freq: str, concentration: float) -> tuple[str, str]:
    return writer.rotation(inv_freq, concentration)


def _attention_sublayer(
    writer: Writer,
    *,
    x: Stream,
    norm_weight: str,
    qkv_weight: str,
    qkv_bias: str,
    o_weight: str,
    o_bias: str,
    sinks: str,
    k_cache: CacheNames,
    v_cache: CacheNames,
    pages: Any,
    cos: str,
    sin: str,
    slots: Any,
    positions: Any,
    window: int,
    scale: float,
    eps: float,
    places: None,
    ranks: int,
) -> Stream:
    config = writer.config
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    normed, x = writer.norm(x, norm_weight, eps)
    qkv = writer.linear(normed, qkv_weight, qkv_bias)
    given = Attention(k_cache, v_cache, cos, sin, sinks, window, scale)
    out = writer.attention(qkv, [count * config.head_dim for count in heads], given)
    return writer.project(x, out, o_weight, o_bias)


def _experts_sublayer(
    writer: Writer,
    *,
    x: Stream,
    norm_weight: str,
    router_weight: str,
    router_bias: str,
    gate_up_weight: str,
    gate_up_scales: str,
    gate_up_table: None,
    gate_up_bias: str,
    down_weight: str,
    down_scales: str,
    down_table: None,
    down_bias: str,
    positions: Any,
    choices: int,
    alpha: float,
    limit: float,
    eps: float,
    places: None,
    ranks: int,
) -> Stream:
    normed, x = writer.norm(x, norm_weight, eps)
    packed = ExpertWeights(gate_up_weight, gate_up_scales, gate_up_bias, down_weight, down_scales, down_bias)
    logits = writer.linear(normed, router_weight, router_bias)
    return writer.experts(x, normed, logits, packed, choices, alpha, limit)


def _unembed(writer: Writer, *, x: Stream, norm_weight: str, weight: str, eps: float) -> tuple[str, None, None, None]:
    """The logits alone, of the tokens that are wanted: who runs an ONNX model chooses the next token itself."""
    g, hidden_size = writer.g, writer.config.hidden_size
    normed, _ = writer.norm(x, norm_weight, eps)
    rows = g.slice(g.reshape(normed, writer.batch, -1, hidden_size), LOGITS_FROM, LOGITS_TO, 1)
    logits = writer.linear(g.reshape(rows, -1, hidden_size), weight)
    shape = g.add("Concat", writer.batch, g.constant([-1, writer.config.vocab_size]), axis=0)
    return g.add("Reshape", logits, shape, outputs=[LOGITS]), None, None, None


def _unchanged(writer: Writer, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _next_positions(writer: Writer, positions: Any, moves: Any, *_: Any) -> None:
    if moves is not None:
        raise LoweringError("aten.add.Tensor: ONNX has a converter for the positions of the next step alone")


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.embedding.default: lambda writer, weight, indices, *_: writer.embedding(weight, indices),
    aten.to.dtype: _unchanged,  # the residual stream is float32 from the embedding on
    aten.unsqueeze.default: _unchanged,  # a dimension of one token; here it has any number of tokens
    aten.flatten.using_ints: _unchanged,
    aten._assert_tensor_metadata.default: lambda *_, **__: None,  # checks what is static in the trace
    operator.getitem: lambda writer, items, index: items[index],
    # The positions of the next step, positions + (positions >= 0): who runs an ONNX model advances them itself.
    aten.ge.Scalar: lambda *_: None,
    aten.add.Tensor: _next_positions,
    OPS["rotary"].overload: _rotary,
    OPS["attention_sublayer"].overload: _attention_sublayer,
    OPS["experts_sublayer"].overload: _experts_sublayer,
    OPS["unembed"].overload: _unembed,
}
