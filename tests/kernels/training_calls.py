"""Calls of the ops of a training step of 4,096 tokens at the sizes of gpt-oss-20b, on the meta device, and the kernels
that each call launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gptoss_export.model.expert_formats import BF16, MXFP4, NF4, ExpertFormat

HIDDEN, INTER, EXPERTS, CHOICES = 2880, 2880, 32, 4
KV_HEADS, GROUP, HEAD_DIM = 8, 8, 64
TOKENS, RANK = 4096, 16


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def packed_attention(window: int) -> dict[str, Any]:
    key = empty(TOKENS, KV_HEADS, HEAD_DIM)
    return {
        "query": empty(TOKENS, KV_HEADS * GROUP, HEAD_DIM),
        "key": key,
        "value": key,
        "sinks": empty(KV_HEADS * GROUP),
        "positions": empty(TOKENS, dtype=torch.int64),
        "window": window,
        "scale": HEAD_DIM**-0.5,
    }


def packed_attention_backward(window: int) -> dict[str, Any]:
    given = packed_attention(window)
    log_total = empty(TOKENS, KV_HEADS * GROUP, dtype=torch.float32)
    return given | {"grad": given["query"], "out": given["query"], "log_total": log_total}


def grouped_linear(rows: int, columns: int, transposed: bool, form: ExpertFormat) -> dict[str, Any]:
    tensors = {
        f"matrix_{tensor.argument}": empty(
            *tensor.shape(EXPERTS, rows, columns), dtype=getattr(torch, tensor.dtype or "bfloat16")
        )
        for tensor in form.tensors
    }
    return {
        "x": empty(TOKENS * CHOICES, rows if transposed else columns),
        "matrix_scales": None,
        "matrix_table": None,
        **tensors,
        "bias": None if transposed else empty(EXPERTS, rows),
        "added": empty(TOKENS * CHOICES, columns if transposed else rows) if form == BF16 else None,
        "ends": empty(EXPERTS, dtype=torch.int32),
        "transposed": transposed,
    }


def rotate(heads: int) -> dict[str, Any]:
    angle = empty(TOKENS, HEAD_DIM // 2, dtype=torch.float32)
    return {"x": empty(TOKENS, heads, HEAD_DIM), "cos": angle, "sin": angle}


def grouped_outer(left: int, right: int) -> dict[str, Any]:
    lines = TOKENS * CHOICES
    return {"a": empty(lines, left), "b": empty(lines, right), "ends": empty(EXPERTS, dtype=torch.int32)}


def _linear(transposed: bool, form: ExpertFormat) -> list[str]:
    if transposed:
        return ["_grouped_linear_transposed"]
    return ["_grouped_linear"] if form == BF16 else ["_arrange_words", "_grouped_linear"]


_WINDOWS = ("", 0), (", window", 128)
# label: (op, arguments, kernels it launches)
TRAINING: dict[str, tuple[str, Callable[[], dict[str, Any]], list[str]]] = {
    **{
        f"{label}{', transposed' if transposed else ''}": (
            "grouped_linear",
            partial(grouped_linear, rows, columns, transposed, form),
            _linear(transposed, form),
        )
        for label, rows, columns, form in (
            ("grouped gate_up", 2 * INTER, HIDDEN, MXFP4),
            ("grouped down, nf4", HIDDEN, INTER, NF4),
            ("grouped lora_A", RANK, HIDDEN, BF16),
            ("grouped lora_B", 2 * INTER, RANK, BF16),
        )
        for transposed in (False, True)
    },
    **{
        f"packed attention{label}": ("packed_attention", partial(packed_attention, window), ["_packed_attention"])
        for label, window in _WINDOWS
    },
    **{
        f"gradients of packed attention{label}": (
            "packed_attention_backward",
            partial(packed_attention_backward, window),
            ["_delta", "_key_gradients", "_query_gradients"],
        )
        for label, window in _WINDOWS
    },
    "rotation of queries": ("rotate", partial(rotate, KV_HEADS * GROUP), ["_rotate"]),
    "outer products, lora_A": ("grouped_outer", partial(grouped_outer, RANK, HIDDEN), ["_grouped_outer"]),
    "outer products, lora_B": ("grouped_outer", partial(grouped_outer, 2 * INTER, RANK), ["_grouped_outer"]),
}
