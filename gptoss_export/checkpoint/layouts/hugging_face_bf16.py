"""The layout "hf-bf16": Hugging Face's tensor names, experts as plain matrices [E, in, out]. Builds round them
to MXFP4, or keep them.

Fine-tunes that were merged to 16 bits are stored so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...model import mxfp4
from ...model.config import ModelConfig
from ...model.expert_formats import MXFP4
from .experts import Stacked, expert_recipe
from .hugging_face import dense_recipes, load_stored, plain_config_json
from .layout import Layout, ParameterSource, Recipe, StoredTensor, Tensors, expert_matrices

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM


def _matches(tensors: Tensors) -> bool:
    return any(name.endswith("experts.gate_up_proj") for name in tensors)


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    recipes = dense_recipes(config)
    experts = config.num_local_experts
    for layer in range(config.num_hidden_layers):
        for matrix in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{matrix.name}"
            part = StoredTensor(stem, (experts, matrix.columns, matrix.rows))
            recipes[stem] = expert_recipe(config, [part], matrix, Stacked(inputs_first=True))
    return recipes


def _load_transformers(checkpoint: ParameterSource, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    """Let transformers read the plain matrices, and round them to MXFP4 where a build does."""
    model = load_stored(checkpoint, "bf16", dtype, device)
    if checkpoint.config.expert_format != MXFP4:
        return model
    for layer in model.model.layers:
        for matrices in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            for expert in matrices.data:
                expert.copy_(mxfp4.dequantize(*mxfp4.quantize(expert.T)).T)
    return model


LAYOUT = Layout(
    name="hf-bf16",
    names="hf",
    experts="bf16",
    matches=_matches,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=_load_transformers,
)
