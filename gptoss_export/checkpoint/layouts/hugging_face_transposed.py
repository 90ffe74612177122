"""The layout "hf-transposed": Hugging Face's tensor names, experts as plain matrices [E, out, in]. Builds round them to
MXFP4, or keep them.

Tools that merge fine-tunes store them so, some as `gate_up_proj`, others as `gate_up_proj.weight` with `.bias`. That
gate_up lies so shows in its shape. down may be square, and lies as gate_up does.
"""

from __future__ import annotations

from ...model.config import ModelConfig
from .experts import Stacked, expert_recipe
from .hugging_face import dense_recipes, load_from_parameters, plain_config_json
from .layout import Layout, Recipe, StoredTensor, Tensors, expert_matrices

_PLAIN, _WEIGHT = ".mlp.experts.gate_up_proj", ".mlp.experts.gate_up_proj.weight"


def _matches(tensors: Tensors) -> bool:
    found = [name for name in tensors if name.endswith((_PLAIN, _WEIGHT))]
    return bool(found) and all(name.endswith(_WEIGHT) or _is_transposed(name, tensors) for name in found)


def _is_transposed(name: str, tensors: Tensors) -> bool:
    """Whether the outputs, which the bias has too, are the second dimension and not the third."""
    (shape, _), (bias, _) = tensors[name], tensors.get(f"{name}_bias", ((), ""))
    return len(shape) == 3 and bias[-1:] == shape[1:2] != shape[2:]


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    recipes = dense_recipes(config)
    experts = config.num_local_experts
    has_weight = any(name.endswith(_WEIGHT) for name in tensors)
    for layer in range(config.num_hidden_layers):
        for matrix in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{matrix.name}"
            part = StoredTensor(f"{stem}.weight" if has_weight else stem, (experts, matrix.rows, matrix.columns))
            recipes[stem] = expert_recipe(config, [part], matrix, Stacked(inputs_first=False))
            if has_weight:
                recipes[f"{stem}_bias"] = Recipe((StoredTensor(f"{stem}.bias", (experts, matrix.rows)),))
    return recipes


LAYOUT = Layout(
    name="hf-transposed",
    names="hf-transposed",
    experts="bf16",
    matches=_matches,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
)
