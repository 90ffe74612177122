"""The layout "hf-separate-nf4": a matrix in NF4 for each expert, as unsloth stores models in 4 bits (nf4.py). Builds
quantize the experts to MXFP4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...model.config import ModelConfig
from .hugging_face import load_from_parameters, plain_config_json
from .hugging_face_separate import Matrices, is_separate, separate_recipes
from .layout import Layout, LazyTensor, Recipe, Tensors
from .nf4 import Nf4Matrix, is_nf4


@dataclass(frozen=True)
class _Nf4Experts:
    """The matrices of all experts in NF4."""

    matrices: tuple[Nf4Matrix, ...]

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        begin = sum(matrix.count for matrix in self.matrices[:expert])
        found = self.matrices[expert]
        return found.read(stored[begin : begin + found.count])

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for each, matrix in zip(self.matrices, matrices, strict=True) for part in each.store(matrix))


def _matches(tensors: Tensors) -> bool:
    return is_separate(tensors) and any(".mlp.experts." in name and is_nf4(name, tensors) for name in tensors)


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    def matrices(names: list[str], rows: int, columns: int) -> Matrices:
        found = tuple(Nf4Matrix.of(name, rows, columns, tensors) for name in names)
        return Matrices(tuple(part for matrix in found for part in matrix.parts), _Nf4Experts(found))

    return separate_recipes(config, matrices)


LAYOUT = Layout(
    name="hf-separate-nf4",
    names="hf-separate",
    experts="nf4",
    matches=_matches,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
)
