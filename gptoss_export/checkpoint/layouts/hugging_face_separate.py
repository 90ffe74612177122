"""The layout "hf-separate": Hugging Face's tensor names, but a plain matrix [out, in] for each expert. Builds quantize
them to MXFP4.

Tools that train with an nn.Linear for each expert store them so when a fine-tune was merged. The router's tensors are
those of an nn.Linear too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...model.config import ModelConfig
from .hugging_face import dense_recipes, load_from_parameters, plain_config_json
from .layout import Layout, Recipe, StoredTensor, Tensors, expert_matrices
from .quantize_experts import ExpertStorage, QuantizeExperts, Separate, Stack


class Matrices(NamedTuple):
    """The stored tensors of the matrices of all experts of a layer, and what they mean."""

    parts: tuple[StoredTensor, ...]
    storage: ExpertStorage


def is_separate(tensors: Tensors) -> bool:
    """Whether experts have a tensor each."""
    return any(".mlp.experts.gate_up_projs." in name for name in tensors)


def separate_recipes(config: ModelConfig, matrices: Callable[[list[str], int, int], Matrices]) -> dict[str, Recipe]:
    """The recipes of a checkpoint whose experts have tensors of their own.

    matrices  names of the weights of all experts, rows and columns to their stored tensors
    """
    recipes = dense_recipes(config, router="mlp.router.linear")
    experts = range(config.num_local_experts)
    for layer in range(config.num_hidden_layers):
        for name, rows, columns in expert_matrices(config):
            prefix = f"model.layers.{layer}.mlp.experts."
            parts, storage = matrices([f"{prefix}{name}s.{expert}.weight" for expert in experts], rows, columns)
            recipes[f"{prefix}{name}"] = Recipe(parts, QuantizeExperts(len(experts), rows, columns, storage))
            biases = tuple(StoredTensor(f"{prefix}{name}s.{expert}.bias", (rows,)) for expert in experts)
            recipes[f"{prefix}{name}_bias"] = Recipe(biases, Stack())
    return recipes


def _plain(names: list[str], rows: int, columns: int) -> Matrices:
    return Matrices(tuple(StoredTensor(name, (rows, columns)) for name in names), Separate())


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    return separate_recipes(config, _plain)


LAYOUT = Layout(
    name="hf-separate",
    names="hf-separate",
    experts="bf16",
    matches=is_separate,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
)
