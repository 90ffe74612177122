"""gptoss::adapted_experts: the experts of gptoss::experts, with LoRA adapters, each token with its own.

For token t with the adapter s, an expert e computes

    W1[e] x + b1[e] + gate_up_b[s, e] (gate_up_a[s, e] x)          before its activation, and
    W2[e] act + b2[e] + down_b[s, e] (down_a[s, e] act)            before it is weighted.

Where s is -1 nothing is added. This is what PEFT computes with an adapter of the parameters gate_up_proj and down_proj.

Shapes (S adapter slots of rank R)
  x to limit   as gptoss::experts
  gate_up_a    [S, E, R, H],   gate_up_b  [S, E, 2 I, R]     with the adapter's scale
  down_a       [S, E, R, I],   down_b     [S, E, H, R]
  adapter      [T] int64       0 to S - 1, or -1: none
  returns      [T, H], dtype of x; sums are float32

The factors are finite. An implementation may round as one of gptoss::experts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..expert_adapters import ExpertAdapters
from . import draw, experts
from .adapter_delta import drawn_adapters
from .op import Case, Op


def reference(
    x: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_indices: torch.Tensor,
    gate_up_weight: torch.Tensor,
    gate_up_scales: torch.Tensor | None,
    gate_up_table: torch.Tensor | None,
    gate_up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_scales: torch.Tensor | None,
    down_table: torch.Tensor | None,
    down_bias: torch.Tensor,
    alpha: float,
    limit: float,
    gate_up_a: torch.Tensor,
    gate_up_b: torch.Tensor,
    down_a: torch.Tensor,
    down_b: torch.Tensor,
    adapter: torch.Tensor,
) -> torch.Tensor:
    """The op's meaning in plain PyTorch, in float32."""
    return experts.mixture(
        x,
        routing_weights,
        expert_indices,
        gate_up_weight,
        gate_up_scales,
        gate_up_table,
        gate_up_bias,
        down_weight,
        down_scales,
        down_table,
        down_bias,
        alpha,
        limit,
        ExpertAdapters(adapter, {"gate_up": (gate_up_a, gate_up_b), "down": (down_a, down_b)}),
    )


def fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The cases of the experts, with tokens of each adapter and of none."""
    for index, (label, given) in enumerate(experts.cases(device, dtype)):
        random = torch.Generator().manual_seed(len(label))
        slots, rank = 1 + index % 3, (4, 1, 5)[index % 3]
        (tokens, hidden), (count, twice) = given["x"].shape, given["gate_up_bias"].shape

        def normal(*shape: int) -> torch.Tensor:
            return (torch.randn(shape, generator=random) * shape[-1] ** -0.5).to(device, dtype)  # noqa: B023

        arguments = {
            **given,
            "gate_up_a": normal(slots, count, rank, hidden),
            "gate_up_b": normal(slots, count, twice, rank),
            "down_a": normal(slots, count, rank, twice // 2),
            "down_b": normal(slots, count, hidden, rank),
            "adapter": ((torch.arange(tokens) + index) % (slots + 1) - 1).to(device),
        }
        yield Case(label, arguments)


FACTORS = ("gate_up_a", "gate_up_b", "down_a", "down_b")
OP = Op(
    name="adapted_experts",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={**experts.OP.realistic, **dict.fromkeys(FACTORS, draw.matrix), "adapter": drawn_adapters},
    serves_everywhere=True,
)
