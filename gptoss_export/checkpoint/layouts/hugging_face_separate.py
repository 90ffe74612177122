"""The layout "hf-separate": Hugging Face's tensor names, but a plain matrix [out, in] for each expert.

Builds round them to MXFP4, or keep them.

Tools that train with an nn.Linear for each expert store them so when a fine-tune was merged. The router's tensors are
those of an nn.Linear too.
"""

from __future__ import annotations

from collections.abc import Callable

from ...model.config import ModelConfig
from .experts import Separate, Stack, expert_recipe
from .hugging_face import dense_recipes, load_from_parameters, plain_config_json
from .layout import ExpertMatrix, Layout, Recipe, StoredTensor, Tensors, expert_matrices


def is_separate(tensors: Tensors) -> bool:
    """Whether experts have a tensor each."""
    return any(".mlp.experts.gate_up_projs." in name for name in tensors)


def separate_recipes(config: ModelConfig, recipe: Callable[[list[str], ExpertMatrix], Recipe]) -> dict[str, Recipe]:
    """The recipes of a checkpoint whose experts have tensors of their own.

    recipe  of a matrix of all experts, by the names of the experts' weights
    """
    recipes = dense_recipes(config, router="mlp.router.linear")
    experts = range(config.num_local_experts)
    for layer in range(config.num_hidden_layers):
        for matrix in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{matrix.name}"
            recipes[stem] = recipe([f"{stem}s.{expert}.weight" for expert in experts], matrix)
            biases = tuple(StoredTensor(f"{stem}s.{expert}.bias", (matrix.rows,)) for expert in experts)
            recipes[f"{stem}_bias"] = Recipe(biases, Stack())
    return recipes


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    def recipe(names: list[str], matrix: ExpertMatrix) -> Recipe:
        parts = [StoredTensor(name, (matrix.rows, matrix.columns)) for name in names]
        return expert_recipe(config, parts, matrix, Separate())

    return separate_recipes(config, recipe)


LAYOUT = Layout(
    name="hf-separate",
    names="hf-separate",
    experts="bf16",
    matches=is_separate,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
)
