"""What LoRA adapters add to the products of routed experts, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

# The matrix, "gate_up" or "down", and what it is multiplied with [P, M, in], to what is added [P, M, out].
Added: TypeAlias = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertAdapters:
    """The factors of all adapter slots, and which adapter each token uses.

    of_tokens  [T] int64; -1: none
    factors    by matrix: A [S, E, R, in] and B [S, E, out, R]
    """

    of_tokens: torch.Tensor
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    def of_pairs(self, experts: torch.Tensor) -> Added:
        """For products of pairs: the experts [T, K] of each token, one after the other, P = T K and M = 1."""
        slots = self.of_tokens.repeat_interleave(experts.size(1))
        used, indices, pairs = (slots >= 0)[:, None, None], slots.clamp(min=0), experts.flatten()

        def added(matrix: str, x: torch.Tensor) -> torch.Tensor:
            a, b = (factor[indices, pairs].float() for factor in self.factors[matrix])
            low = torch.where(used, torch.bmm(x, a.mT), 0.0)
            return torch.bmm(low, b.mT)

        return added

    def of_all(self) -> Added:
        """For products of all tokens with each expert, P = E and M = T."""

        def added(matrix: str, x: torch.Tensor) -> torch.Tensor:
            a, b = (factor.float() for factor in self.factors[matrix])
            slots, _, rank, _ = a.shape
            used = self.of_tokens[:, None] == torch.arange(slots, device=x.device)
            low = torch.bmm(x, a.transpose(0, 1).flatten(1, 2).mT)  # [E, T, S R]
            low = torch.where(used.repeat_interleave(rank, dim=1), low, 0.0)
            return torch.bmm(low, b.permute(1, 2, 0, 3).flatten(2).mT)

        return added
