"""Faults that a compiler, a kernel or a checkpoint reader could have, as changes of the decoder, and small models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from eager_artifact import Fault
from torch.nn import functional as F

from artifacts import TWO_LAYERS
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.model.config import FULL, SLIDING
from gptoss_export.model.kv_cache import PAGE
from gptoss_export.model.ops.attention_sublayer import rotate
from gptoss_export.model.ops.experts_sublayer import route
from gptoss_export.model.ops.norm import rms_norm

# Small models. "odd" has sizes that are multiples of nothing.
MODELS = {
    "tiny": PRESETS["tiny"],
    "two layers": TWO_LAYERS,
    "odd": dataclasses.replace(
        PRESETS["tiny"],
        num_hidden_layers=3,
        layer_types=(SLIDING, FULL, SLIDING),
        num_attention_heads=6,
        head_dim=24,
        vocab_size=517,
        num_local_experts=5,
        num_experts_per_tok=3,
        sliding_window=21,
        eos_token_ids=(516,),
    ),
    "four layers": dataclasses.replace(
        PRESETS["tiny"],
        hidden_size=192,
        intermediate_size=96,
        head_dim=64,
        vocab_size=1000,
        num_local_experts=16,
        eos_token_ids=(999,),
    ),
}


def layers(model: Any) -> Iterator[Any]:
    yield from model.model.layers


def change_window(by: int) -> Fault:
    def change(model: Any) -> None:
        for layer in layers(model):
            layer.self_attn.window += by if layer.self_attn.window else 0

    return change


def full_attention(model: Any) -> None:
    for layer in layers(model):
        layer.self_attn.window = 0


def plain_frequencies(model: Any) -> None:
    """The frequencies of plain RoPE."""
    rotary = model.model.rotary_emb
    count = rotary.inv_freq.numel()
    rotary.inv_freq.copy_(150000.0 ** -(torch.arange(count) / count))


def drop_concentration(model: Any) -> None:
    model.model.rotary_emb.concentration = 1.0


def drop_yarn(model: Any) -> None:
    plain_frequencies(model)
    drop_concentration(model)


def drop_sinks(model: Any) -> None:
    for layer in layers(model):
        layer.self_attn.sinks.fill_(-1e4)


def swap_experts(model: Any) -> None:
    """The weights of two experts of one layer are swapped."""
    experts = model.model.layers[1].mlp.experts
    for value in (experts.gate_up_proj_blocks, experts.down_proj_blocks):
        value[[0, 1]] = value[[1, 0]].clone()


def raise_scales(model: Any) -> None:
    """Every weight of one matrix of one expert of one layer is twice as large."""
    model.model.layers[0].mlp.experts.down_proj_scales[2] += 1


def fewer_choices(model: Any) -> None:
    for layer in layers(model):
        layer.mlp.choices -= 1


def zero(*path: str) -> Fault:
    """A bias of every layer is missing."""

    def change(model: Any) -> None:
        for layer in layers(model):
            value = layer
            for name in path:
                value = getattr(value, name)
            value.zero_()

    return change


def other_alpha(model: Any) -> None:
    for layer in layers(model):
        layer.mlp.alpha = 1.0


def reverse_choices(model: Any) -> None:
    """The routing weights of a token's experts are in the opposite order: the best expert gets the least weight."""

    def forward(mlp: Any) -> Callable[..., torch.Tensor]:
        def run(x: torch.Tensor, norm: Any, positions: torch.Tensor, *_: None) -> torch.Tensor:
            normed = rms_norm(x, norm.weight, norm.eps)
            weights, indices = route(normed, mlp.router.weight, mlp.router.bias, mlp.choices)
            return x + torch.ops.gptoss.experts(
                x=normed.to(norm.weight.dtype),
                routing_weights=weights.flip(-1),
                expert_indices=torch.where((positions >= 0)[:, None], indices, -1),
                **mlp.experts.by_argument(),
                alpha=mlp.alpha,
                limit=mlp.limit,
            )

        return run

    for layer in layers(model):
        layer.mlp.forward = forward(layer.mlp)


def write_elsewhere(place: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    """Sliding layers write the keys and values of `positions` to `place(positions)`, and look for them where they
    should be."""

    def forward(attention: Any) -> Callable[..., torch.Tensor]:
        def run(
            x: Any, norm: Any, rope: Any, slots: Any, positions: Any, pages: Any, k_cache: Any, v_cache: Any, *_: None
        ) -> torch.Tensor:
            heads, kv_heads, head_dim = attention.sinks.size(0), k_cache.size(1), k_cache.size(3)
            normed = rms_norm(x, norm.weight, norm.eps).to(attention.qkv_proj.weight.dtype)
            qkv = attention.qkv_proj(normed).view(-1, heads + 2 * kv_heads, head_dim)
            query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
            query, key = rotate(query, *rope).view(*positions.shape, heads, head_dim), rotate(key, *rope)
            table, caches = pages[attention.kind], (k_cache, v_cache)
            torch.ops.gptoss.kv_write(*caches, table, key, value, slots, place(positions))
            out = torch.ops.gptoss.sink_attention(
                query, *caches, table, attention.sinks, slots, positions, attention.window, attention.scale
            )
            return x + F.linear(out.view(x.size(0), -1), attention.o_proj.weight, attention.o_proj.bias)

        return run

    def fault(model: Any) -> None:
        for layer in layers(model):
            if layer.self_attn.window:
                layer.self_attn.forward = forward(layer.self_attn)

    return fault


FAULTS: dict[str, Fault] = {
    "window one longer": change_window(1),
    "window one shorter": change_window(-1),
    "no window": full_attention,
    "no YaRN": drop_yarn,
    "frequencies of plain RoPE": plain_frequencies,
    "no attention factor": drop_concentration,
    "no sinks": drop_sinks,
    "two experts swapped": swap_experts,
    "scales of an expert one higher": raise_scales,
    "one expert fewer": fewer_choices,
    "routing weights in the opposite order": reverse_choices,
    "one row off from the second page on": write_elsewhere(lambda at: at + (at >= PAGE).long()),
    "the last row of a page is lost": write_elsewhere(lambda at: at.where(at % PAGE != PAGE - 1, -1)),
    "no bias of q, k and v": zero("self_attn", "qkv_proj", "bias"),
    "no bias of the output projection": zero("self_attn", "o_proj", "bias"),
    "no bias of the router": zero("mlp", "router", "bias"),
    "no bias of gate and up": zero("mlp", "experts", "gate_up_proj_bias"),
    "no bias of down": zero("mlp", "experts", "down_proj_bias"),
    "another alpha of SwiGLU": other_alpha,
}
