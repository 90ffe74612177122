"""The layout "hf-separate-nf4": a matrix in NF4 for each expert, as unsloth stores models in 4 bits (nf4.py).

Builds keep NF4, or round it to MXFP4, or unpack it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import CheckpointError
from ...model.config import ModelConfig
from ...model.expert_formats import MXFP4, NF4, ExpertFormat, largest_groups
from .experts import expert_recipe
from .hugging_face import load_from_parameters, plain_config_json
from .hugging_face_separate import is_separate, separate_recipes
from .layout import ExpertMatrix, Layout, LazyTensor, Recipe, Rounding, Tensors, expert_matrices
from .nf4 import Nf4Matrix, is_nf4


@dataclass(frozen=True)
class _Nf4Experts:
    """The matrices of all experts in NF4."""

    matrices: tuple[Nf4Matrix, ...]

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        return self.matrices[expert].read(self.of_expert(stored, expert))

    def of_expert(self, stored: Sequence[LazyTensor], expert: int) -> Sequence[LazyTensor]:
        """The stored tensors of one expert."""
        begin = sum(matrix.count for matrix in self.matrices[:expert])
        return stored[begin : begin + self.matrices[expert].count]

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for each, matrix in zip(self.matrices, matrices, strict=True) for part in each.store(matrix))


@dataclass(frozen=True)
class _KeepNf4:
    """Stacks the codes of all experts, and what belongs to them, in one of the formats of NF4."""

    form: ExpertFormat
    experts: _Nf4Experts

    def parameters(self, name: str) -> tuple[str, ...]:
        return self.form.names(name)

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        """Nothing is rounded: absmax that were quantized are unpacked. Raises CheckpointError where experts have
        different tables."""
        found = []
        for expert, matrix in enumerate(self.experts.matrices):
            found.append(matrix.in_rows(self.experts.of_expert(stored, expert), self.form.group))
            if not torch.equal(found[0].table, found[-1].table):
                raise CheckpointError(
                    f"{matrix.name}.quant_map: is not that of {self.experts.matrices[0].name}; use --experts mxfp4"
                )
        return torch.stack([one.codes for one in found]), torch.stack([one.absmax for one in found]), found[0].table

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Checkpoints are written from MXFP4. Raises CheckpointError."""
        raise CheckpointError("NF4 that was read is not written again")


def _matches(tensors: Tensors) -> bool:
    return is_separate(tensors) and any(".mlp.experts." in name and is_nf4(name, tensors) for name in tensors)


def _format(config: ModelConfig, tensors: Tensors) -> ExpertFormat:
    """NF4 with as large groups as the rows and the stored blocks divide into. Without such, MXFP4."""
    blocks = [
        Nf4Matrix.of(name, matrix.rows, matrix.columns, tensors).block
        for matrix in expert_matrices(config)
        for name in tensors
        if f".mlp.experts.{matrix.name}s." in name and is_nf4(name, tensors)
    ]
    return largest_groups(NF4.option, (config.hidden_size, config.intermediate_size, *blocks)) or MXFP4


def _recipes(config: ModelConfig, tensors: Tensors) -> dict[str, Recipe]:
    def recipe(names: list[str], matrix: ExpertMatrix) -> Recipe:
        storage = _Nf4Experts(tuple(Nf4Matrix.of(name, matrix.rows, matrix.columns, tensors) for name in names))
        parts = tuple(part for one in storage.matrices for part in one.parts)
        if config.expert_format.option == NF4.option:
            return Recipe(parts, _KeepNf4(config.expert_format, storage))
        return expert_recipe(config, parts, matrix, storage)

    return separate_recipes(config, recipe)


LAYOUT = Layout(
    name="hf-separate-nf4",
    names="hf-separate",
    experts="nf4",
    matches=_matches,
    recipes=_recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
    format=_format,
)
