"""The three layouts of a gpt-oss checkpoint: which stored tensors make up each parameter of the model.

  hf          Hugging Face, experts packed as MXFP4 (what openai/gpt-oss-20b and -120b hold)
  hf-bf16     Hugging Face, experts as plain matrices [E, in, out]; the build quantizes them
  original    the authors' own names (the `original/` folder of those repositories), MXFP4, q k v in one matrix

The model's parameters (`gptoss_export.model`) are the meeting point: each is the concatenation, along its
first dimension, of stored tensors; or the blocks or scales of a stored matrix that has to be quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..model.config import MXFP4_GROUP, ModelConfig

FLOATS = ("BF16", "F32", "F16")  # safetensors' names
PACKED = ("U8",)


@dataclass(frozen=True)
class Stored:
    """A tensor that the checkpoint must hold."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


@dataclass(frozen=True)
class Recipe:
    """How a parameter comes from stored tensors; `quantize` means: MXFP4 of the transposed last two dims."""

    parts: tuple[Stored, ...]
    quantize: bool = False


@dataclass(frozen=True)
class Layout:
    """name; whether a set of tensor names is in this layout; the recipe of every parameter.

    A recipe with `quantize` is listed under the parameter's name without _blocks and _scales.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    recipes: Callable[[ModelConfig], dict[str, Recipe]]


def _stored(name: str, *shape: int) -> Recipe:
    return Recipe((Stored(name, shape),))


def _packed(blocks: str, scales: str, experts: int, rows: int, columns: int) -> tuple[Recipe, Recipe]:
    groups = columns // MXFP4_GROUP
    return (
        Recipe((Stored(blocks, (experts, rows, groups, MXFP4_GROUP // 2), PACKED),)),
        Recipe((Stored(scales, (experts, rows, groups), PACKED),)),
    )


def _hugging_face_dense(config: ModelConfig) -> dict[str, Recipe]:
    """Everything but the weight matrices of the experts."""
    hidden, experts, inter = config.hidden_size, config.num_local_experts, config.intermediate_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    recipes = {
        "model.embed_tokens.weight": _stored("model.embed_tokens.weight", config.vocab_size, hidden),
        "model.norm.weight": _stored("model.norm.weight", hidden),
        "lm_head.weight": _stored("lm_head.weight", config.vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        projections = (("q", q), ("k", kv), ("v", kv))
        recipes[f"{at}self_attn.qkv_proj.weight"] = Recipe(
            tuple(Stored(f"{at}self_attn.{p}_proj.weight", (rows, hidden)) for p, rows in projections)
        )
        recipes[f"{at}self_attn.qkv_proj.bias"] = Recipe(
            tuple(Stored(f"{at}self_attn.{p}_proj.bias", (rows,)) for p, rows in projections)
        )
        for name, shape in {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.o_proj.weight": (hidden, q),
            "self_attn.o_proj.bias": (hidden,),
            "self_attn.sinks": (config.num_attention_heads,),
            "mlp.router.weight": (experts, hidden),
            "mlp.router.bias": (experts,),
            "mlp.experts.gate_up_proj_bias": (experts, 2 * inter),
            "mlp.experts.down_proj_bias": (experts, hidden),
        }.items():
            recipes[at + name] = _stored(at + name, *shape)
    return recipes


def _hugging_face(config: ModelConfig) -> dict[str, Recipe]:
    recipes = _hugging_face_dense(config)
    for layer in range(config.num_hidden_layers):
        for name, rows, columns in _expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{name}_"
            blocks, scales = stem + "blocks", stem + "scales"
            recipes[blocks], recipes[scales] = _packed(blocks, scales, config.num_local_experts, rows, columns)
    return recipes


def _hugging_face_bf16(config: ModelConfig) -> dict[str, Recipe]:
    recipes = _hugging_face_dense(config)
    for layer in range(config.num_hidden_layers):
        for name, rows, columns in _expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            recipes[stem] = Recipe((Stored(stem, (config.num_local_experts, columns, rows)),), quantize=True)
    return recipes


def _original(config: ModelConfig) -> dict[str, Recipe]:
    hidden, experts, inter = config.hidden_size, config.num_local_experts, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = (heads + 2 * kv_heads) * config.head_dim
    recipes = {
        "model.embed_tokens.weight": _stored("embedding.weight", config.vocab_size, hidden),
        "model.norm.weight": _stored("norm.scale", hidden),
        "lm_head.weight": _stored("unembedding.weight", config.vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        at, block = f"model.layers.{layer}.", f"block.{layer}."
        for name, (stored, *shape) in {
            "input_layernorm.weight": ("attn.norm.scale", hidden),
            "post_attention_layernorm.weight": ("mlp.norm.scale", hidden),
            "self_attn.qkv_proj.weight": ("attn.qkv.weight", width, hidden),
            "self_attn.qkv_proj.bias": ("attn.qkv.bias", width),
            "self_attn.o_proj.weight": ("attn.out.weight", hidden, heads * config.head_dim),
            "self_attn.o_proj.bias": ("attn.out.bias", hidden),
            "self_attn.sinks": ("attn.sinks", heads),
            "mlp.router.weight": ("mlp.gate.weight", experts, hidden),
            "mlp.router.bias": ("mlp.gate.bias", experts),
            "mlp.experts.gate_up_proj_bias": ("mlp.mlp1_bias", experts, 2 * inter),
            "mlp.experts.down_proj_bias": ("mlp.mlp2_bias", experts, hidden),
        }.items():
            recipes[at + name] = _stored(block + stored, *shape)
        for (name, rows, columns), stored in zip(_expert_matrices(config), ("mlp1", "mlp2"), strict=True):
            stem, source = f"{at}mlp.experts.{name}_", f"{block}mlp.{stored}_weight."
            recipes[stem + "blocks"], recipes[stem + "scales"] = _packed(
                source + "blocks", source + "scales", experts, rows, columns
            )
    return recipes


def _expert_matrices(config: ModelConfig) -> tuple[tuple[str, int, int], ...]:
    """Name, rows (outputs) and columns (inputs) of the two matrices of an expert."""
    return (
        ("gate_up_proj", 2 * config.intermediate_size, config.hidden_size),
        ("down_proj", config.hidden_size, config.intermediate_size),
    )


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("original", lambda names: any(name.startswith("block.") for name in names), _original),
        Layout("hf-bf16", lambda names: any(name.endswith("experts.gate_up_proj") for name in names), _hugging_face_bf16),
        Layout("hf", lambda names: any(name.startswith("model.layers.") for name in names), _hugging_face),
    )
}
