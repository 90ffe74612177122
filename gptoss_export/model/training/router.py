"""The choices of the router in a training step: pairs of a token and an expert, sorted by expert, and their gradient.

The choice itself has no gradient. Its weights have one, through their softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pairs(NamedTuple):
    """N = T K pairs sorted by expert; pairs of an expert are in the order of their tokens.

    choice  [N] int64: t K + k, the token and the choice of each pair
    token   [N] int64: its token
    place   [T, K] int64: where the pair of a token and a choice is
    expert  [N] int64
    ends    [E] int32: where the pairs of each expert end
    """

    choice: torch.Tensor
    token: torch.Tensor
    place: torch.Tensor
    expert: torch.Tensor
    ends: torch.Tensor


def sort_pairs(indices: torch.Tensor, experts: int) -> Pairs:
    """The pairs of choices [T, K]."""
    tokens, choices = indices.shape
    expert, choice = torch.sort(indices.flatten(), stable=True)
    place = torch.argsort(choice).view(tokens, choices)
    numbers = torch.arange(experts, device=indices.device)
    return Pairs(choice, choice // choices, place, expert, torch.searchsorted(expert, numbers, right=True).int())


def router_backward(
    grad: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, router_weight: torch.Tensor
) -> torch.Tensor:
    """The gradient [T, H] float32 of the router's input, for the gradient [T, K] of its weights.

    The weights are the softmax over the chosen logits:   dlogit = weight (grad - sum over choices of weight * grad)"""
    chosen = weights * (grad - (weights * grad).sum(dim=-1, keepdim=True))
    logits = torch.zeros(weights.size(0), router_weight.size(0), dtype=torch.float32, device=weights.device)
    return logits.scatter(1, indices, chosen) @ router_weight.float()
