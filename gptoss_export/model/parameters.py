"""The parameters of the decoder, from its config alone. Imports no torch: a manifest is checked where there is none.

`decoder.GptOss` has these parameters in this order (a test compares the two).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import ModelConfig
from .expert_formats import FORMATS, MXFP4
from .places import FIRST_MEMORY

LAYERS = "model.layers."
EMBEDDING = "model.embed_tokens.weight"
INV_FREQ = "model.rotary_emb.inv_freq"  # the only parameter that no checkpoint stores: it follows from config.json
PLACES = "places"  # what a program knows of the ranks (places.py); no checkpoint stores it
UNEMBEDDING = ("model.norm.weight", "lm_head.weight")  # what the unembedding reads


@dataclass(frozen=True)
class Parameter:
    """A parameter's name, shape and dtype (torch's name without `torch.`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def parameters(config: ModelConfig, dtype: str) -> tuple[Parameter, ...]:
    """All parameters of the decoder. Matrices are in `dtype`, those of experts in the format of the config."""
    hidden, vocabulary = config.hidden_size, config.vocab_size
    found = [
        Parameter(EMBEDDING, (vocabulary, hidden), dtype),
        Parameter(INV_FREQ, (config.head_dim // 2,), "float32"),
    ]
    for layer in range(config.num_hidden_layers):
        found += _layer(config, f"{LAYERS}{layer}.", dtype)
    norm, lm_head = UNEMBEDDING
    if config.ranks > 1:
        found.append(Parameter(PLACES, (FIRST_MEMORY + config.ranks,), "int64"))
    return (*found, Parameter(norm, (hidden,), dtype), Parameter(lm_head, (config.unembedded_tokens, hidden), dtype))


def layer_of(name: str) -> int | None:
    """The layer that a parameter belongs to; None for one outside of the layers."""
    if not name.startswith(LAYERS):
        return None
    return int(name.removeprefix(LAYERS).partition(".")[0])


def is_expert_weight(name: str) -> bool:
    """Whether a parameter belongs to the experts, of which a token reads only those that it is routed to."""
    return ".mlp.experts." in name


def is_expert_matrix(name: str) -> bool:
    """Whether a parameter holds the weights of the experts' matrices, or their codes: not the scales."""
    return is_expert_weight(name) and name.endswith(tuple(found.tensors[0].suffix for found in FORMATS.values()))


def is_mxfp4_blocks(name: str) -> bool:
    """Whether a parameter holds the codes of MXFP4 weights."""
    return is_expert_weight(name) and name.endswith(MXFP4.tensors[0].suffix)


def _layer(config: ModelConfig, prefix: str, dtype: str) -> Iterator[Parameter]:
    hidden, inter, experts = config.hidden_size, config.intermediate_size, config.held_experts
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    width = (heads + 2 * kv_heads) * head_dim
    for name, shape, kind in (
        ("input_layernorm.weight", (hidden,), dtype),
        ("self_attn.sinks", (heads,), dtype),
        ("self_attn.qkv_proj.weight", (width, hidden), dtype),
        ("self_attn.qkv_proj.bias", (width,), dtype),
        ("self_attn.o_proj.weight", (hidden, heads * head_dim), dtype),
        ("self_attn.o_proj.bias", (hidden,), dtype),
        ("post_attention_layernorm.weight", (hidden,), dtype),
        ("mlp.router.weight", (config.num_local_experts, hidden), dtype),
        ("mlp.router.bias", (config.num_local_experts,), dtype),
        *_expert_matrix(config, "gate_up_proj", 2 * inter, hidden, dtype),
        ("mlp.experts.gate_up_proj_bias", (experts, 2 * inter), dtype),
        *_expert_matrix(config, "down_proj", hidden, inter, dtype),
        ("mlp.experts.down_proj_bias", (experts, hidden), dtype),
    ):
        yield Parameter(prefix + name, shape, kind)


def _expert_matrix(
    config: ModelConfig, name: str, rows: int, columns: int, dtype: str
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    for tensor in config.expert_format.tensors:
        shape = tensor.shape(config.held_experts, rows, columns)
        yield f"mlp.experts.{name}{tensor.suffix}", shape, tensor.dtype or dtype
