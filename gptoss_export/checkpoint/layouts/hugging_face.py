"""The layout "hf": Hugging Face's tensor names, experts in MXFP4. openai/gpt-oss-20b and -120b are stored so.

Also what other layouts share with it: the tensors outside of the experts' matrices, config.json as Hugging Face
spells it, and how Hugging Face's model is filled from this project's parameters.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from ...model import mxfp4
from ...model.config import ModelConfig
from .layout import Layout, ParameterSource, Recipe, StoredTensor, expert_matrices, stored, stored_mxfp4

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM

_NOT_MXFP4 = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
_CONFIG_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "num_local_experts",
    "num_experts_per_tok",
    "sliding_window",
    "max_position_embeddings",
    "rms_norm_eps",
    "swiglu_alpha",
    "swiglu_limit",
)


def dense_recipes(config: ModelConfig) -> dict[str, Recipe]:
    """Recipes of all parameters except for the experts' weight matrices. q, k and v become one parameter."""
    hidden, experts, inter = config.hidden_size, config.num_local_experts, config.intermediate_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    recipes = {
        "model.embed_tokens.weight": stored("model.embed_tokens.weight", config.vocab_size, hidden),
        "model.norm.weight": stored("model.norm.weight", hidden),
        "lm_head.weight": stored("lm_head.weight", config.vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        projections = (("q", q), ("k", kv), ("v", kv))
        recipes[f"{prefix}self_attn.qkv_proj.weight"] = Recipe(
            tuple(StoredTensor(f"{prefix}self_attn.{p}_proj.weight", (rows, hidden)) for p, rows in projections)
        )
        recipes[f"{prefix}self_attn.qkv_proj.bias"] = Recipe(
            tuple(StoredTensor(f"{prefix}self_attn.{p}_proj.bias", (rows,)) for p, rows in projections)
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
            recipes[prefix + name] = stored(prefix + name, *shape)
    return recipes


def plain_config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json as Hugging Face spells it, without a quantization of the experts."""
    rope = config.rope
    end = config.eos_token_ids[0] if config.eos_token_ids else None
    rope_scaling = {
        "rope_type": "yarn",
        "factor": rope.factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "truncate": rope.truncate,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    }
    if rope.attention_factor is not None:
        rope_scaling["attention_factor"] = rope.attention_factor
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": end,
        "pad_token_id": end,
        **{key: getattr(config, key) for key in _CONFIG_KEYS},
        "layer_types": list(config.layer_types),
        "rope_theta": rope.theta,
        "rope_scaling": rope_scaling,
    }


def load_from_parameters(checkpoint: ParameterSource, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    """Hugging Face's model, filled from the checkpoint's parameters. For layouts that transformers cannot read."""
    from transformers import AutoModelForCausalLM, GptOssConfig

    config = checkpoint.config
    settings = GptOssConfig(**plain_config_json(config))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="eager")
    remaining = set(checkpoint.parameters())

    def take(name: str) -> torch.Tensor:
        remaining.remove(name)
        return checkpoint.parameter(name)

    state: dict[str, torch.Tensor] = {}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    sizes = [count * config.head_dim for count in (heads, kv_heads, kv_heads)]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            pieces = take(f"{prefix}self_attn.qkv_proj.{kind}").split(sizes)
            state |= {f"{prefix}self_attn.{p}_proj.{kind}": piece for p, piece in zip("qkv", pieces, strict=True)}
        for matrix in expert_matrices(config):
            stem = f"{prefix}mlp.experts.{matrix.name}"
            state[stem] = mxfp4.dequantize(take(f"{stem}_blocks"), take(f"{stem}_scales")).mT
    state |= {name: checkpoint.parameter(name) for name in remaining}
    model.load_state_dict(state, strict=True)
    return model


def _matches(names: Collection[str]) -> bool:
    return any(name.startswith("model.layers.") for name in names)


def _recipes(config: ModelConfig) -> dict[str, Recipe]:
    recipes = dense_recipes(config)
    for layer in range(config.num_hidden_layers):
        for matrix in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{matrix.name}"
            blocks, scales = f"{stem}_blocks", f"{stem}_scales"
            recipes[blocks], recipes[scales] = stored_mxfp4(blocks, scales, config.num_local_experts, matrix)
    return recipes


def _config_json(config: ModelConfig) -> dict[str, Any]:
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": _NOT_MXFP4}
    return plain_config_json(config) | {"quantization_config": quantization}


def _load_transformers(checkpoint: ParameterSource, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    from transformers import GptOssForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    return GptOssForCausalLM.from_pretrained(
        checkpoint.folder,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=dtype,
        attn_implementation="eager",
        device_map=device,
    )


LAYOUT = Layout(
    name="hf",
    names="hf",
    experts="mxfp4",
    matches=_matches,
    recipes=_recipes,
    config_json=_config_json,
    load_transformers=_load_transformers,
)
