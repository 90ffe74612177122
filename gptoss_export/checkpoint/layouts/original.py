"""The layout "original": the tensor names of the authors' own code, experts in MXFP4, q, k and v in one matrix.

The folder `original/` of openai/gpt-oss-20b and -120b is stored so.
"""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from .experts import mxfp4_recipes
from .hugging_face import load_from_parameters
from .layout import Layout, Recipe, Tensors, expert_matrices, stored

_CONFIG_KEYS = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "swiglu_limit",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
)


def _matches(tensors: Tensors) -> bool:
    return any(name.startswith("block.") for name in tensors)


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    hidden, experts, inter = config.hidden_size, config.num_local_experts, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = (heads + 2 * kv_heads) * config.head_dim
    recipes = {
        "model.embed_tokens.weight": stored("embedding.weight", config.vocab_size, hidden),
        "model.norm.weight": stored("norm.scale", hidden),
        "lm_head.weight": stored("unembedding.weight", config.vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        prefix, block = f"model.layers.{layer}.", f"block.{layer}."
        recipes |= {
            f"{prefix}input_layernorm.weight": stored(f"{block}attn.norm.scale", hidden),
            f"{prefix}post_attention_layernorm.weight": stored(f"{block}mlp.norm.scale", hidden),
            f"{prefix}self_attn.qkv_proj.weight": stored(f"{block}attn.qkv.weight", width, hidden),
            f"{prefix}self_attn.qkv_proj.bias": stored(f"{block}attn.qkv.bias", width),
            f"{prefix}self_attn.o_proj.weight": stored(f"{block}attn.out.weight", hidden, heads * config.head_dim),
            f"{prefix}self_attn.o_proj.bias": stored(f"{block}attn.out.bias", hidden),
            f"{prefix}self_attn.sinks": stored(f"{block}attn.sinks", heads),
            f"{prefix}mlp.router.weight": stored(f"{block}mlp.gate.weight", experts, hidden),
            f"{prefix}mlp.router.bias": stored(f"{block}mlp.gate.bias", experts),
            f"{prefix}mlp.experts.gate_up_proj_bias": stored(f"{block}mlp.mlp1_bias", experts, 2 * inter),
            f"{prefix}mlp.experts.down_proj_bias": stored(f"{block}mlp.mlp2_bias", experts, hidden),
        }
        for matrix, name in zip(expert_matrices(config), ("mlp1_weight", "mlp2_weight"), strict=True):
            stem, source = f"{prefix}mlp.experts.{matrix.name}", f"{block}mlp.{name}"
            recipes |= mxfp4_recipes(config, stem, matrix, (f"{source}.blocks", f"{source}.scales"))
    return recipes


def _config_json(config: ModelConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in _CONFIG_KEYS} | {
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "initial_context_length": config.rope.original_max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling_factor": config.rope.factor,
        "rope_ntk_alpha": config.rope.beta_slow,
        "rope_ntk_beta": config.rope.beta_fast,
    }


LAYOUT = Layout(
    name="original",
    names="original",
    experts="mxfp4",
    matches=_matches,
    recipes=_recipes,
    config_json=_config_json,
    load_transformers=load_from_parameters,
)
