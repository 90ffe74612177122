"""gptoss::experts_sublayer: the second half of a decoder layer, from residual stream to residual stream.

    normed           = norm(x)
    weights, indices = the `choices` largest of  normed @ router_weight.T + router_bias,  softmax over them
    returns            x + experts(normed, weights, indices)            gptoss::experts

Where ranks share the model, each has a part of the weights and computes a part of what is added to x. They add the
parts of all (gptoss::sum_ranks), so that every rank has the same result.

It is one op because at batch 1 norm, router, top-k, weighted sum and residual would be a dozen small kernels around
two that take time. Where no kernel covers a call, the reference serves, which leaves gptoss::experts.

Shapes
  x              [T, H] float32
  norm_weight    [H]
  router_weight  [E, H],   router_bias [E]
  gate_up_weight to down_bias   as in gptoss::experts
  positions      [T] int64      -1: padding, which goes to no expert
  choices        int            experts a token goes to, 1 to E
  alpha, limit, eps   float
  places         [.] int64, model/places.py; None where one rank has the whole model
  ranks          int
  returns        [T, H] float32

The router is computed in float32. Of equal logits the lower expert index wins. The experts get `normed` in the dtype
of the weights, or with more digits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from ..places import Box
from . import draw, experts
from .norm import rms_norm
from .op import Case, Op


def route(
    normed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, choices: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """normed [T, H] float32 to weights [T, K] float32 and expert indices [T, K] int64."""
    logits = F.linear(normed, weight.float(), bias.float())
    # A stable sort decides ties in the same way on every device; topk does not.
    values, indices = torch.sort(logits, dim=-1, descending=True, stable=True)
    return values[:, :choices].softmax(dim=-1), indices[:, :choices]


def reference(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    router_weight: torch.Tensor,
    router_bias: torch.Tensor,
    gate_up_weight: torch.Tensor,
    gate_up_scales: torch.Tensor | None,
    gate_up_table: torch.Tensor | None,
    gate_up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_scales: torch.Tensor | None,
    down_table: torch.Tensor | None,
    down_bias: torch.Tensor,
    positions: torch.Tensor,
    choices: int,
    alpha: float,
    limit: float,
    eps: float,
    places: torch.Tensor | None,
    ranks: int,
) -> torch.Tensor:
    """The op's meaning in plain PyTorch, over gptoss::experts."""
    normed = rms_norm(x, norm_weight, eps)
    weights, indices = route(normed, router_weight, router_bias, choices)
    indices = torch.where((positions >= 0)[:, None], indices, -1)
    mixed = torch.ops.gptoss.experts(
        normed.to(norm_weight.dtype),
        weights,
        indices,
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
    )
    if places is None:
        return x + mixed
    return torch.ops.gptoss.sum_ranks(mixed, x, places, ranks, Box.EXPERTS)


def fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The cases of the experts, with a router in front; a tie in the router, a token that is idle."""
    for label, given in experts.cases(device, dtype):
        random = torch.Generator().manual_seed(len(label))
        x, indices = given["x"], given["expert_indices"]
        (tokens, hidden), count = x.shape, given["down_bias"].size(0)
        router = (torch.randn(count, hidden, generator=random) * hidden**-0.5).to(device, dtype)
        bias = torch.randn(count, generator=random).to(device, dtype)
        if label == "one token":  # seven equal winners for four places
            router[2:], bias[2:] = router[2].clone(), bias[2] + 8
            router[0], bias[0] = router[2], bias[2]
        norm = (1 + 0.1 * torch.randn(hidden, generator=random)).to(device, dtype)
        idle = indices[:, 0] < 0
        arguments = {
            "x": x.float(),
            "norm_weight": norm,
            "router_weight": router,
            "router_bias": bias,
            **{name: given[name] for name in WEIGHTS},
            "positions": torch.where(idle, -1, torch.arange(tokens, device=device)),
            "choices": indices.size(1),
            "alpha": given["alpha"],
            "limit": given["limit"],
            "eps": 1e-5,
            "places": None,
            "ranks": 1,
        }
        yield Case(label, arguments)


WEIGHTS = tuple(f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in ("weight", "scales", "table", "bias"))
OP = Op(
    name="experts_sublayer",
    reference=reference,
    fake=fake,
    cases=cases,
    parts=("experts", "sum_ranks"),
    realistic={**experts.STORED_WEIGHTS, "router_weight": draw.matrix, "positions": draw.positions},
)
