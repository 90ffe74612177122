"""The LoRA adapters of an artifact as the decoder takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .adapter_factors import EXPERTS, factor_names

Adapters: TypeAlias = Mapping[str, torch.Tensor]  # the table and all factors, by their names as inputs of programs


@dataclass(frozen=True)
class LayerAdapters:
    """The adapters of a layer. of_tokens: the adapter slot of each token, [T] int64; -1: none."""

    inputs: Adapters
    layer: int
    of_tokens: torch.Tensor

    def delta(self, matrix: str, x: torch.Tensor) -> torch.Tensor:
        """What is added to the product of a matrix of attention with [T, in]."""
        a, b = (self.inputs[name] for name in factor_names(self.layer, matrix))
        return torch.ops.gptoss.adapter_delta(x=x, a=a, b=b, adapter=self.of_tokens)

    def of_experts(self) -> dict[str, torch.Tensor]:
        """The arguments of gptoss::adapted_experts behind those of gptoss::experts."""
        found = {}
        for matrix in EXPERTS:
            for letter, name in zip("ab", factor_names(self.layer, matrix), strict=True):
                found[f"{matrix.removesuffix('_proj')}_{letter}"] = self.inputs[name]
        return {**found, "adapter": self.of_tokens}
