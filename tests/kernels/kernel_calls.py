"""Calls of the ops at the sizes of gpt-oss-20b, on the meta device, and the kernels that each call launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from training_calls import TRAINING

from gptoss_export.model.expert_formats import BF16, MXFP4, NF4, NF4_OF_32, ExpertFormat
from gptoss_export.model.kv_cache import PAGE
from gptoss_export.model.places import FIRST_MEMORY

HIDDEN, INTER, EXPERTS, CHOICES, VOCABULARY = 2880, 2880, 32, 4, 201088
KV_HEADS, GROUP, HEAD_DIM = 8, 8, 64


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attention(sequences: int, length: int, rows: int, window: int) -> dict[str, Any]:
    return {
        "query": empty(sequences, length, KV_HEADS * GROUP, HEAD_DIM),
        "k_cache": empty(64, KV_HEADS, PAGE, HEAD_DIM),
        "v_cache": empty(64, KV_HEADS, PAGE, HEAD_DIM),
        "pages": empty(64, rows // PAGE, dtype=torch.int32),
        "sinks": empty(KV_HEADS * GROUP),
        "slots": empty(sequences, dtype=torch.int64),
        "positions": empty(sequences, length, dtype=torch.int64),
        "window": window,
        "scale": HEAD_DIM**-0.5,
    }


def experts(tokens: int, count: int = EXPERTS, form: ExpertFormat = MXFP4) -> dict[str, Any]:
    def stored(name: str, rows: int, columns: int) -> dict[str, torch.Tensor | None]:
        tensors = {
            f"{name}_{tensor.argument}": empty(
                *tensor.shape(count, rows, columns), dtype=getattr(torch, tensor.dtype or "bfloat16")
            )
            for tensor in form.tensors
        }
        return {f"{name}_scales": None, f"{name}_table": None, **tensors, f"{name}_bias": empty(count, rows)}

    return {
        "x": empty(tokens, HIDDEN),
        "routing_weights": empty(tokens, CHOICES, dtype=torch.float32),
        "expert_indices": empty(tokens, CHOICES, dtype=torch.int64),
        **stored("gate_up", 2 * INTER, HIDDEN),
        **stored("down", HIDDEN, INTER),
        "alpha": 1.702,
        "limit": 7.0,
    }


def attention_sublayer(sequences: int, length: int, rows: int, window: int) -> dict[str, Any]:
    inner, tokens = attention(sequences, length, rows, window), sequences * length
    del inner["query"]
    width, heads = (GROUP + 2) * KV_HEADS * HEAD_DIM, GROUP * KV_HEADS
    return inner | {
        "x": empty(tokens, HIDDEN, dtype=torch.float32),
        "norm_weight": empty(HIDDEN),
        "qkv_weight": empty(width, HIDDEN),
        "qkv_bias": empty(width),
        "o_weight": empty(HIDDEN, heads * HEAD_DIM),
        "o_bias": empty(HIDDEN),
        "cos": empty(tokens, HEAD_DIM // 2, dtype=torch.float32),
        "sin": empty(tokens, HEAD_DIM // 2, dtype=torch.float32),
        "eps": 1e-5,
        "places": None,
        "ranks": 1,
    }


def kv_write(tokens: int, rows: int) -> dict[str, Any]:
    inner = attention(1, tokens, rows, 0)
    key = empty(tokens, KV_HEADS, HEAD_DIM)
    names = "k_cache", "v_cache", "pages", "slots", "positions"
    return {name: inner[name] for name in names} | {"key": key, "value": key}


def experts_sublayer(tokens: int, count: int = EXPERTS, form: ExpertFormat = MXFP4) -> dict[str, Any]:
    inner = experts(tokens, count, form)
    del inner["routing_weights"], inner["expert_indices"]
    return inner | {
        "x": empty(tokens, HIDDEN, dtype=torch.float32),
        "norm_weight": empty(HIDDEN),
        "router_weight": empty(count, HIDDEN),
        "router_bias": empty(count),
        "positions": empty(tokens, dtype=torch.int64),
        "choices": CHOICES,
        "eps": 1e-5,
        "places": None,
        "ranks": 1,
    }


def unembed(rows: int) -> dict[str, Any]:
    x = empty(rows, HIDDEN, dtype=torch.float32)
    return {"x": x, "norm_weight": empty(HIDDEN), "weight": empty(VOCABULARY, HIDDEN), "eps": 1e-5}


def rotary(tokens: int) -> dict[str, Any]:
    return {
        "positions": empty(tokens, dtype=torch.int64),
        "inv_freq": empty(HEAD_DIM // 2, dtype=torch.float32),
        "concentration": 1.3,
    }


def sum_ranks(ranks: int, tokens: int, residual: bool) -> dict[str, Any]:
    x = empty(tokens, HIDDEN, dtype=torch.float32)
    places = empty(FIRST_MEMORY + ranks, dtype=torch.int64)
    return {"x": x, "residual": x if residual else None, "places": places, "ranks": ranks, "box": 2}


def of_two_ranks(arguments: dict[str, Any]) -> dict[str, Any]:
    """A call of one of them. The sizes are left as they are."""
    return arguments | {"places": empty(FIRST_MEMORY + 2, dtype=torch.int64), "ranks": 2}


FEW = ["_gate_up_pdl", "_down_pdl"]
GROUPING = ["_count_pairs", "_place_pairs", "_arrange_words"]
MANY = ["gate_up_many_pdl", "down_many_pdl", "sum_many_pdl"]
CHUNK = [*GROUPING, *MANY]
CHUNK_HALF = ["_route_chunk_pdl", "_count_pairs", "_place_pairs", *MANY]
STEP = ["_qkv_pdl", "_attend_next_pdl", "_combine_pdl", "_project_pdl"]
BATCH_STEP = ["_normalise_pdl", "_qkv_batch_pdl", "_attend_next_pdl", "_project_batch_pdl"]

# label: (op, arguments, kernels it launches)
LAUNCHES: dict[str, tuple[str, Callable[[], dict[str, Any]], list[str]]] = {
    "decode": ("sink_attention", lambda: attention(1, 1, 8192, 0), ["_attend_pdl", "_combine_pdl"]),
    "decode, window": ("sink_attention", lambda: attention(1, 1, 8192, 128), ["_attend_pdl"]),
    "prefill": ("sink_attention", lambda: attention(1, 512, 8192, 0), ["_attend_pdl"]),
    "prefill, window": ("sink_attention", lambda: attention(1, 512, 8192, 128), ["_attend_pdl"]),
    "experts, one token": ("experts", lambda: experts(1), ["_arrange", *FEW]),
    "experts, batch of 64": ("experts", lambda: experts(64), [*GROUPING, *MANY]),
    "experts, chunk of 256": ("experts", lambda: experts(256), CHUNK),
    "experts, chunk of 512": ("experts", lambda: experts(512), CHUNK),
    "experts, chunk": ("experts", lambda: experts(2048), CHUNK),
    "experts, chunk of 8192": ("experts", lambda: experts(8192), CHUNK),
    "cache write, one token": ("kv_write", lambda: kv_write(1, 8192), ["_write_kv"]),
    "cache write, chunk": ("kv_write", lambda: kv_write(512, 8192), ["_write_kv"]),
    "rotary": ("rotary", lambda: rotary(512), ["_rotary"]),
    "attention half of two ranks, one token": (
        "attention_sublayer",
        lambda: of_two_ranks(attention_sublayer(1, 1, 8192, 0)),
        STEP,
    ),
    "attention half of two ranks, batch of 64": (
        "attention_sublayer",
        lambda: of_two_ranks(attention_sublayer(64, 1, 8192, 128)),
        BATCH_STEP,
    ),
    "experts half of two ranks, one token": (
        "experts_sublayer",
        lambda: of_two_ranks(experts_sublayer(1)),
        ["_router_pdl", *FEW],
    ),
    "experts half of two ranks, batch of 64": (
        "experts_sublayer",
        lambda: of_two_ranks(experts_sublayer(64)),
        ["_router_pdl", "_group_pdl", *MANY],
    ),
    "sum, one token": ("sum_ranks", lambda: sum_ranks(2, 1, True), ["_sum_ranks_pdl"]),
    "sum of 8 ranks, 64 tokens": ("sum_ranks", lambda: sum_ranks(8, 64, False), ["_sum_ranks_pdl"]),
    "attention half, one token": ("attention_sublayer", lambda: attention_sublayer(1, 1, 8192, 0), STEP),
    "attention half, chunk": (
        "attention_sublayer",
        lambda: attention_sublayer(1, 512, 8192, 128),
        ["_write_kv", "_attend_pdl"],
    ),
    "attention half, batch of 64": ("attention_sublayer", lambda: attention_sublayer(64, 1, 8192, 128), BATCH_STEP),
    "attention half, 128 tokens": (
        "attention_sublayer",
        lambda: attention_sublayer(8, 16, 8192, 128),
        ["_normalise_pdl", "_qkv_batch_pdl", "_attend_pdl", "_project_batch_pdl"],
    ),
    "experts half, one token": ("experts_sublayer", lambda: experts_sublayer(1), ["_router_pdl", *FEW]),
    "experts half, 2 tokens": ("experts_sublayer", lambda: experts_sublayer(2), ["_router_pdl", "_group_pdl", *MANY]),
    "experts half, 8 tokens": ("experts_sublayer", lambda: experts_sublayer(8), ["_router_pdl", "_group_pdl", *MANY]),
    "experts half, 128 tokens": (
        "experts_sublayer",
        lambda: experts_sublayer(128),
        ["_router_pdl", "_group_pdl", *MANY],
    ),
    "experts half, 128 experts": ("experts_sublayer", lambda: experts_sublayer(1, 128), ["_router_pdl", *FEW]),
    "experts half, 64 tokens, 128 experts": (
        "experts_sublayer",
        lambda: experts_sublayer(64, 128),
        ["_router_pdl", "_group_pdl", *MANY],
    ),
    "experts half, chunk": (
        "experts_sublayer",
        lambda: experts_sublayer(2048),
        CHUNK_HALF,
    ),
    "experts half, chunk of 512, 128 experts": (
        "experts_sublayer",
        lambda: experts_sublayer(512, 128),
        CHUNK_HALF,
    ),
    "experts half, chunk of 150, 256 experts": (
        "experts_sublayer",
        lambda: experts_sublayer(150, 256),
        CHUNK_HALF,
    ),
    **{
        f"experts, {form.name}, {size}": ("experts", partial(experts, tokens, form=form), names)
        for form in (NF4, BF16)
        for size, tokens, names in (("one token", 1, ["_arrange", *FEW]), ("chunk of 256", 256, CHUNK))
    },
    **{
        f"experts half, {form.name}, {size}": ("experts_sublayer", partial(experts_sublayer, tokens, form=form), names)
        for form in (NF4, NF4_OF_32, BF16)
        for size, tokens, names in (
            ("one token", 1, ["_router_pdl", *FEW]),
            ("2 tokens", 2, ["_router_pdl", "_group_pdl", *MANY]),
            ("batch of 64", 64, ["_router_pdl", "_group_pdl", *MANY]),
            ("128 tokens", 128, ["_router_pdl", "_group_pdl", *MANY]),
            ("chunk", 2048, CHUNK_HALF),
        )
    },
    "unembedding, one row": ("unembed", lambda: unembed(1), ["_logits_pdl", "_choose_pdl"]),
    "unembedding, 64 rows": ("unembed", lambda: unembed(64), ["_normalise_pdl", "_logits_batch_pdl", "_choose_pdl"]),
    "unembedding, 200 rows": ("unembed", lambda: unembed(200), []),
    **TRAINING,
}


def calls_of_20b(batch: int) -> list[tuple[str, dict[str, Any]]]:
    """The calls that a build for a context of 8192 makes: decode steps of `batch` sequences, and chunks."""
    found = [
        ("experts_sublayer", experts_sublayer(batch)),
        ("experts", experts(batch)),
        ("unembed", unembed(batch)),
    ]
    chunks = (128, 2048) if batch == 1 else (128,)
    for window in 0, 128:
        found += [("attention_sublayer", attention_sublayer(batch, 1, 8192, window))]
        found += [("sink_attention", attention(batch, 1, 8192, window))]
        found += [("sink_attention", attention(1, chunk, 8192, window)) for chunk in chunks]
    return found + [("experts", experts(chunk)) for chunk in chunks]
