"""The layout "hf-nvfp4": Hugging Face's tensor names, experts in NVFP4, as NVIDIA's ModelOpt stores them. Builds
round them to MXFP4, or unpack them.

NVFP4 has the codes of MXFP4. A group of 16 shares a scale in float8 (E4M3), and a whole tensor, or each expert, has a
float32 beside it:

  experts.gate_up_proj                  uint8 [E, out, in / 2]     two codes a byte, the lower half is the first
  experts.gate_up_proj_weight_scale     float8_e4m3 [E, out, in / 16]
  experts.gate_up_proj_weight_scale_2   float32 [] or [E]
  experts.gate_up_proj_input_scale      float32: of activations, which are not quantized here
  the same for down_proj; biases as Hugging Face's

Some tools store the first two as [E, in / 2, out] and [E, in / 16, out]. gate_up shows it by its shape, and down, which
may be square, lies as gate_up does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...model import mxfp4
from ...model.config import ModelConfig
from .experts import expert_recipe
from .hugging_face import dense_recipes, load_from_parameters, plain_config_json
from .layout import Layout, LazyTensor, Recipe, StoredTensor, Tensors, expert_matrices

_GROUP = 16
_GATE_UP = ".mlp.experts.gate_up_proj"


@dataclass(frozen=True)
class _NvFp4:
    """inputs_first: the order of the last two dimensions."""

    inputs_first: bool

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        packed, scale, factor = stored[0][expert], stored[1][expert].float(), stored[2][...]
        if self.inputs_first:
            packed, scale = packed.T, scale.T
        values = mxfp4.packed_values(packed).unflatten(-1, (-1, _GROUP)) * scale[..., None]
        return values.flatten(-2) * (factor.flatten()[expert] if factor.numel() > 1 else factor)

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Exactly, where the scales of a stack of MXFP4 are within 2^-9 and 2^8 of each other, as a float8 holds."""
        blocks, scales = mxfp4.quantize(matrices)
        powers = mxfp4.scale_values(scales)
        factor = powers.amax()
        scale = (powers / factor).repeat_interleave(2, dim=-1).to(torch.float8_e4m3fn)
        packed = blocks.flatten(-2)
        if self.inputs_first:
            packed, scale = packed.mT, scale.mT
        return packed, scale, factor, torch.ones(())


def _matches(tensors: Tensors) -> bool:
    return any(name.endswith(f"{_GATE_UP}_weight_scale_2") for name in tensors)


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    recipes = dense_recipes(config)
    experts = config.num_local_experts
    first = expert_matrices(config)[0]
    turned = (experts, first.columns // 2, first.rows)
    inputs_first = any(name.endswith(_GATE_UP) and shape == turned for name, (shape, _) in tensors.items())
    for layer in range(config.num_hidden_layers):
        for matrix in expert_matrices(config):
            name, rows, columns = matrix
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            packed, scale = (
                (experts, columns // count, rows) if inputs_first else (experts, rows, columns // count)
                for count in (2, _GROUP)
            )
            parts = [
                StoredTensor(stem, packed, ("U8",)),
                StoredTensor(f"{stem}_weight_scale", scale, ("F8_E4M3",)),
                _factor(f"{stem}_weight_scale_2", experts, tensors),
                _factor(f"{stem}_input_scale", experts, tensors),
            ]
            recipes[stem] = expert_recipe(config, parts, matrix, _NvFp4(inputs_first))
    return recipes


def _factor(name: str, experts: int, tensors: Tensors) -> StoredTensor:
    """A number for the whole tensor, or one for each expert."""
    shape = tensors[name][0] if name in tensors else ()
    return StoredTensor(name, shape if shape in ((), (1,), (experts,)) else (), ("F32",))


LAYOUT = Layout(
    name="hf-nvfp4",
    names="hf",
    experts="nvfp4",
    matches=_matches,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
)
