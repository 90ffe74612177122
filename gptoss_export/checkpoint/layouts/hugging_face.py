"""The layout "hf": Hugging Face's tensor names, experts in MXFP4. openai/gpt-oss-20b and -120b are stored so.

Also what other layouts share with it: the tensors outside of the experts' matrices, config.json as Hugging Face
spells it, and how Hugging Face's model is filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from ...errors import CheckpointError, raise_all
from ...model.config import ModelConfig
from ...model.expert_formats import MXFP4, ExpertFormat
from ...model.expert_weights import unpack
from ...model.parameters import LAYERS, layer_of
from .experts import mxfp4_recipes
from .layout import (
    Layout,
    LazyTensor,
    ParameterSource,
    Recipe,
    StoredTensor,
    Tensors,
    expert_matrices,
    stored,
)

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


def dense_recipes(config: ModelConfig, router: str = "mlp.router") -> dict[str, Recipe]:
    """Recipes of all parameters except for the experts' weight matrices. q, k and v become one parameter.

    router  what the checkpoint calls the router
    """
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
            recipes[prefix + name] = stored(prefix + name.replace("mlp.router", router), *shape)
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


def load_stored(
    checkpoint: ParameterSource, experts: str, dtype: torch.dtype, device: torch.device
) -> GptOssForCausalLM:
    """Hugging Face's model, filled by transformers from the stored tensors. For layouts with Hugging Face's names.

    experts  "mxfp4": transformers unpacks them. "bf16": plain matrices
    """
    with ExitStack() as stack:
        paths = dict.fromkeys(checkpoint.files.values())
        shards = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
        weights = {name: shards[path].get_slice(name) for name, path in checkpoint.files.items()}
        return _fill_transformers(checkpoint, weights, experts, dtype, device)


def load_from_parameters(checkpoint: ParameterSource, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    """Hugging Face's model, filled by transformers from the parameters. For layouts with other names.

    Parameters that are stored as they are stay where they are mapped. Experts in another format than MXFP4 are passed
    as plain matrices.
    """
    config = checkpoint.config
    packed = config.expert_format == MXFP4
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    sizes = [count * config.head_dim for count in (heads, kv_heads, kv_heads)]
    weights: dict[str, LazyTensor] = {}
    for _, group in checkpoint.converted_groups():
        for name, value in group.items():
            names = [name.replace("qkv_proj", f"{letter}_proj") for letter in "qkv"] if "qkv_proj" in name else [name]
            weights |= dict(zip(names, value.split(sizes) if len(names) > 1 else [value], strict=True))
        if not packed and (layer := layer_of(next(iter(group)))) is not None:
            _unpack_experts(weights, config.expert_format, f"{LAYERS}{layer}.mlp.experts.", dtype)
    return _fill_transformers(checkpoint, weights, "mxfp4" if packed else "bf16", dtype, device)


def _unpack_experts(weights: dict[str, Any], form: ExpertFormat, prefix: str, dtype: torch.dtype) -> None:
    """Put the matrices of a layer's experts in place of the tensors that they are stored in: [E, in, out]."""
    for matrix in ("gate_up_proj", "down_proj"):
        names = form.by_argument(prefix + matrix)
        weight, scales, table = (None if name is None else weights.pop(name) for name in names.values())
        assert weight is not None
        weights[prefix + matrix] = unpack(weight, scales, table).to(dtype).mT


def _fill_transformers(
    checkpoint: ParameterSource,
    weights: Mapping[str, LazyTensor],
    experts: str,
    dtype: torch.dtype,
    device: torch.device,
) -> GptOssForCausalLM:
    """Hugging Face's model of this config, filled by transformers from weights with Hugging Face's names.

    The config is the one that a build reads, whatever else config.json says. Raises CheckpointError where a parameter
    of the model got no weight, where a weight belongs to no parameter, and where the shapes differ.
    """
    from transformers import GptOssConfig, GptOssForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    config = checkpoint.config
    settings = (_config_json if experts == "mxfp4" else plain_config_json)(config)
    # transformers makes a mask for sliding layers of every model, and refuses to without a window.
    settings["sliding_window"] = config.sliding_window or config.max_position_embeddings
    settings["eos_token_id"] = settings["pad_token_id"] = None
    loaded: Any = GptOssForCausalLM.from_pretrained(
        None,
        config=GptOssConfig(**settings),
        state_dict=dict(weights),
        quantization_config=Mxfp4Config(dequantize=True) if experts == "mxfp4" else None,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        device_map=device,
        ignore_mismatched_sizes=True,  # they are reported with the others
        output_loading_info=True,
    )
    model, info = loaded
    problems = [f"{name}: transformers got no weight for it" for name in sorted(info["missing_keys"])]
    problems += [f"{name}: transformers has no such parameter" for name in sorted(info["unexpected_keys"])]
    problems += [
        f"{name}: shape {list(found)}, transformers expected {list(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    raise_all(
        CheckpointError,
        f"{checkpoint.folder}: transformers does not load the weights that a build reads; "
        "use --oracle reference, or another version of transformers",
        problems,
    )
    filled: GptOssForCausalLM = model
    for layer in filled.model.layers:
        layer.mlp.experts.to(dtype)  # transformers 5.17 unpacks MXFP4 to bfloat16, whatever the model's dtype
    return filled


def _matches(tensors: Tensors) -> bool:
    return any(name.startswith("model.layers.") for name in tensors)


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    recipes = dense_recipes(config)
    for layer in range(config.num_hidden_layers):
        for matrix in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{matrix.name}"
            recipes |= mxfp4_recipes(config, stem, matrix, (f"{stem}_blocks", f"{stem}_scales"))
    return recipes


def _config_json(config: ModelConfig) -> dict[str, Any]:
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": _NOT_MXFP4}
    return plain_config_json(config) | {"quantization_config": quantization}


def _load_transformers(checkpoint: ParameterSource, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    return load_stored(checkpoint, "mxfp4", dtype, device)


LAYOUT = Layout(
    name="hf",
    names="hf",
    experts="mxfp4",
    matches=_matches,
    recipes=_recipes,
    config_json=_config_json,
    load_transformers=_load_transformers,
)
