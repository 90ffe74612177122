"""The ops of the graph. A new op is one new file here and one line below."""

from __future__ import annotations

from . import (
    adapted_experts,
    adapter_delta,
    attention,
    attention_sublayer,
    experts,
    experts_sublayer,
    grouped_linear,
    grouped_outer,
    kv_write,
    packed_attention,
    packed_attention_backward,
    rotary,
    rotate,
    sum_ranks,
    unembed,
)
from .draw import Arguments
from .op import Case, Op, Result

OPS: dict[str, Op] = {
    module.OP.name: module.OP.define()
    for module in (
        adapted_experts,
        adapter_delta,
        attention,
        attention_sublayer,
        experts,
        experts_sublayer,
        grouped_linear,
        grouped_outer,
        kv_write,
        packed_attention,
        packed_attention_backward,
        rotary,
        rotate,
        sum_ranks,
        unembed,
    )
}

__all__ = ["OPS", "Arguments", "Case", "Op", "Result"]
