"""The layout "hf-bf16": Hugging Face's tensor names, experts as plain matrices [E, in, out]. Builds quantize them.

Fine-tunes that were merged to 16 bits are stored so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...model import mxfp4
from ...model.config import ModelConfig
from .hugging_face import dense_recipes, load_stored, plain_config_json
from .layout import (
    Layout,
    LazyTensor,
    ParameterSource,
    Recipe,
    StoredTensor,
    expert_matrices,
    mxfp4_shapes,
)

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM


@dataclass(frozen=True)
class QuantizeMxfp4:
    """Converts a stack of plain matrices [experts, columns, rows] to MXFP4 blocks and scales of [rows, columns]."""

    experts: int
    rows: int
    columns: int

    def parameters(self, name: str) -> tuple[str, ...]:
        """The blocks and the scales."""
        return f"{name}_blocks", f"{name}_scales"

    def convert(self, stored: Sequence[LazyTensor]) -> tuple[torch.Tensor, ...]:
        """Quantize the one stored tensor, an expert at a time. Values that MXFP4 holds exactly stay the same."""
        (matrices,) = stored
        shapes = mxfp4_shapes(self.experts, self.rows, self.columns)
        blocks, scales = (torch.empty(shape, dtype=torch.uint8) for shape in shapes)
        for expert in range(self.experts):
            blocks[expert], scales[expert] = mxfp4.quantize(matrices[expert].T)
        return blocks, scales

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The stored tensor in bfloat16, which holds MXFP4 values exactly."""
        blocks, scales = parameters
        return (mxfp4.dequantize(blocks, scales).to(torch.bfloat16).mT,)


def _matches(names: Collection[str]) -> bool:
    return any(name.endswith("experts.gate_up_proj") for name in names)


def _recipes(config: ModelConfig) -> dict[str, Recipe]:
    recipes = dense_recipes(config)
    experts = config.num_local_experts
    for layer in range(config.num_hidden_layers):
        for name, rows, columns in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            part = StoredTensor(stem, (experts, columns, rows))
            recipes[stem] = Recipe((part,), QuantizeMxfp4(experts, rows, columns))
    return recipes


def _load_transformers(checkpoint: ParameterSource, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    """Let transformers read the plain matrices, and round them to MXFP4, as a build does."""
    model = load_stored(checkpoint, "bf16", dtype, device)
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
