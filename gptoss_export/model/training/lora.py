"""The LoRA factors that a training step trains (Hu et al. 2021, arXiv:2106.09685).

A matrix W [out, in] gets factors A [r, in] and B [out, r], and is used as W + alpha / r B A. Matrices of experts get
factors for each expert: A [E, r, in] and B [E, out, r]. Factors and their gradients are float32.

Imports no torch: a manifest is checked where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ...values import shown
from ..adapter_factors import ATTENTION, EXPERTS, adapted_matrices
from ..config import ModelConfig
from ..parameters import LAYERS

TARGETS = (*ATTENTION, *EXPERTS)
MOST_RANK, MOST_TOKENS, MOST_ALPHA = 256, 2**20, 1e6
IGNORED = -100  # the target of a token that does not count, as in torch and transformers


@dataclass(frozen=True)
class Training:
    """What a training step is made for.

    tokens     of a step, of one sequence or of several that are packed
    rank       r of all factors
    alpha      the deltas are multiplied by alpha / rank
    targets    names of TARGETS, in their order: what has factors
    recompute  a layer's activations are computed again in backward, and not kept
    """

    tokens: int
    rank: int
    alpha: float
    targets: tuple[str, ...]
    recompute: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def training_problems(training: Training) -> Iterator[str]:
    """What is wrong with the values, each with its name."""
    for name, most in ("tokens", MOST_TOKENS), ("rank", MOST_RANK):
        value = getattr(training, name)
        if type(value) is not int or not 1 <= value <= most:
            yield f"{name}: found {shown(value)}, expected a whole number from 1 to {most}"
    if type(training.alpha) not in (int, float) or not 0 < training.alpha <= MOST_ALPHA:
        yield f"alpha: found {shown(training.alpha)}, expected a number above 0, at most {MOST_ALPHA}"
    targets = training.targets
    if not targets or targets != tuple(name for name in TARGETS if name in targets):
        yield f"targets: found {shown(list(targets))}, expected some of {', '.join(TARGETS)}, in this order"
    if type(training.recompute) is not bool:
        yield f"recompute: found {shown(training.recompute)}, expected true or false"


class Factor(NamedTuple):
    """One factor: its name, such as model.layers.0.self_attn.q_proj.lora_A, and its shape."""

    name: str
    shape: tuple[int, ...]


def factors(config: ModelConfig, training: Training) -> tuple[Factor, ...]:
    """All factors, in the order in which a program takes them."""
    found = []
    for layer in range(config.num_hidden_layers):
        for matrix in adapted_matrices(config):
            if matrix.name in training.targets:
                part = "mlp.experts" if matrix.experts else "self_attn"
                for letter, (_, *shape) in zip("AB", matrix.shapes(1, training.rank), strict=True):
                    found.append(Factor(f"{LAYERS}{layer}.{part}.{matrix.name}.lora_{letter}", tuple(shape)))
    return tuple(found)
