"""gptoss::experts: the routed feed-forward of a mixture of experts.

For token t and each expert e among its K choices, with routing weight r:

    gate, up = even and odd rows of  W1[e] x[t] + b1[e]
    act      = (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g),   g = min(gate, limit)
    out[t]  += r * (W2[e] act + b2[e])

(as in the reference PyTorch model published with gpt-oss, and in Hugging Face's GptOssExperts). W1 has 2 I rows of
length H, W2 has H rows of length I. Both are in one of the formats of model/expert_weights.py, such as MXFP4.

Shapes
  x                  [T, H]
  routing_weights    [T, K] float32
  expert_indices     [T, K] int64          0 to E - 1, or -1: adds nothing
  gate_up_weight, gate_up_scales, gate_up_table   E matrices [2 I, H] in one of the formats
  gate_up_bias       [E, 2 I]
  down_weight, down_scales, down_table            E matrices [H, I] in the same format
  down_bias          [E, H]
  alpha, limit       float
  returns            [T, H], dtype of x; sums are float32

An implementation may round the weights, `act`, and the result of each pair before the sum, to the dtype of x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..expert_adapters import Added, ExpertAdapters
from ..expert_formats import BF16, MXFP4, NF4, NF4_OF_32
from ..expert_weights import unpack
from . import draw
from .draw import Draw
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
) -> torch.Tensor:
    """The op's meaning in plain PyTorch, in float32."""
    return mixture(
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
        None,
    )


def mixture(
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
    adapters: ExpertAdapters | None,
) -> torch.Tensor:
    """The weighted sum of each token's experts, with what adapters add to their products.

    A graph of static shape cannot compute "the routed experts only" in one way for all sizes. With few choices it
    gathers the weights of each. With many (a prefill chunk) it unpacks every expert once and multiplies densely,
    since nearly every expert is needed then."""
    experts = gate_up_bias.size(0)
    chosen = expert_indices >= 0
    weights = torch.where(chosen, routing_weights.float(), 0.0)
    indices = expert_indices.clamp(min=0)
    tokens, choices = indices.shape
    if tokens * choices <= experts:
        pairs = indices.flatten()
        inputs = x.float().repeat_interleave(choices, dim=0).unsqueeze(1)  # [T K, 1, H]
        gate_up = unpack(gate_up_weight[pairs], _of(gate_up_scales, pairs), gate_up_table)
        down = unpack(down_weight[pairs], _of(down_scales, pairs), down_table)
        added = None if adapters is None else adapters.of_pairs(indices)
        mixed = _feed_forward(inputs, gate_up, gate_up_bias[pairs], down, down_bias[pairs], alpha, limit, added)
        # A weight of zero times NaN is NaN: a place without an expert must not count.
        mixed = torch.where(chosen.unsqueeze(-1), mixed.view(tokens, choices, -1), 0.0)
        out = (mixed * weights.unsqueeze(-1)).sum(dim=1)
    else:
        inputs = x.float().unsqueeze(0).expand(experts, -1, -1)
        gate_up = unpack(gate_up_weight, gate_up_scales, gate_up_table)
        down = unpack(down_weight, down_scales, down_table)
        added = None if adapters is None else adapters.of_all()
        mixed = _feed_forward(inputs, gate_up, gate_up_bias, down, down_bias, alpha, limit, added)
        one_hot = indices.unsqueeze(-1) == torch.arange(experts, device=x.device)  # [T, K, E]
        gates = torch.where(one_hot, weights.unsqueeze(-1), 0.0).sum(dim=1)  # [T, E]
        # In the same way an expert that the token did not choose must not count.
        picked = (one_hot & chosen.unsqueeze(-1)).any(dim=1)
        mixed = torch.where(picked.T.unsqueeze(-1), mixed, 0.0)
        out = torch.einsum("te,eth->th", gates, mixed)
    return out.to(x.dtype).contiguous()


def _feed_forward(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_bias: torch.Tensor,
    down: torch.Tensor,
    down_bias: torch.Tensor,
    alpha: float,
    limit: float,
    added: Added | None,
) -> torch.Tensor:
    """[P, M, H] through P experts, in float32: one batched product for each matrix, and what adapters add to it."""
    hidden = torch.bmm(x, gate_up.mT) + gate_up_bias.float().unsqueeze(1)
    if added is not None:
        hidden = hidden + added("gate_up", x)
    act = swiglu(hidden, alpha, limit)
    out = torch.bmm(act, down.mT) + down_bias.float().unsqueeze(1)
    return out if added is None else out + added("down", act)


def _of(scales: torch.Tensor | None, pairs: torch.Tensor) -> torch.Tensor | None:
    return None if scales is None else scales[pairs]


def swiglu(hidden: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """Interleaved gate and up [..., 2 I] to [..., I], clamped, with the (up + 1) of gpt-oss."""
    gate = hidden[..., 0::2].clamp(max=limit)
    up = hidden[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One token to a chunk, K = 1 and 4, unchosen entries, experts that nobody chose, sizes that no tile divides, and
    every format."""
    shapes = {
        # label: (tokens, hidden, intermediate, experts, choices, routing, format)
        "one token": (1, 64, 64, 8, 4, "random", MXFP4),
        "one token, one choice": (1, 96, 32, 4, 1, "random", MXFP4),
        "two tokens, one idle": (2, 160, 96, 8, 4, "idle", MXFP4),
        "two tokens, one choice, one idle": (2, 96, 64, 8, 1, "idle", MXFP4),
        "chunk": (40, 96, 160, 8, 2, "random", MXFP4),
        "chunk, all to one expert": (70, 64, 64, 8, 1, "same", MXFP4),
        "chunk, mostly padding": (33, 64, 96, 4, 2, "idle", MXFP4),
        "chunk, more experts than pairs": (9, 64, 64, 40, 4, "random", MXFP4),
        "nf4, one token": (1, 192, 64, 8, 4, "random", NF4),
        "nf4, two tokens, one idle": (2, 64, 128, 4, 2, "idle", NF4),
        "nf4, chunk": (40, 64, 192, 8, 2, "random", NF4),
        "nf4-32, one token": (1, 96, 32, 8, 4, "random", NF4_OF_32),
        "nf4-32, chunk, mostly padding": (33, 160, 96, 4, 2, "idle", NF4_OF_32),
        "bf16, one token": (1, 96, 160, 8, 4, "random", BF16),
        "bf16, chunk": (40, 160, 96, 8, 2, "random", BF16),
    }
    for label, (tokens, hidden, inter, experts, choices, routing, form) in shapes.items():
        random = torch.Generator().manual_seed(len(label))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device, dtype)  # noqa: B023

        scores = torch.rand(tokens, experts, generator=random)
        indices = scores.topk(choices, dim=1).indices
        if routing == "same":
            indices = torch.full_like(indices, experts - 1)
        if routing == "idle":
            indices[1:] = -1
        weights = torch.rand(tokens, choices, generator=random).softmax(dim=1)
        gate_up, down = (
            draw.stored(form, experts, rows, columns, random, device, dtype)
            for rows, columns in ((2 * inter, hidden), (hidden, inter))
        )
        arguments = {
            "x": normal(tokens, hidden),
            "routing_weights": weights.to(device),
            "expert_indices": indices.to(device),
            "gate_up_weight": gate_up[0],
            "gate_up_scales": gate_up[1],
            "gate_up_table": gate_up[2],
            "gate_up_bias": 3 * normal(experts, 2 * inter),
            "down_weight": down[0],
            "down_scales": down[1],
            "down_table": down[2],
            "down_bias": normal(experts, hidden),
            "alpha": 1.702,
            "limit": 7.0,
        }
        yield Case(label, arguments)


def _indices(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Choices [T, K] of distinct experts, each expert as likely as any other."""
    experts = draw.arguments["down_bias"].size(0)
    return draw.uniform(like.size(0), experts).topk(like.size(1), dim=1).indices


def _routing_weights(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Weights [T, K] that sum to 1 for each token."""
    return draw.uniform(*like.shape).softmax(dim=1)


STORED_WEIGHTS = {
    f"{matrix}_{part}": rule
    for matrix in ("gate_up", "down")
    for part, rule in (("weight", draw.expert_weight), ("scales", draw.expert_scales), ("table", draw.expert_table))
}
OP = Op(
    name="experts",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={**STORED_WEIGHTS, "expert_indices": _indices, "routing_weights": _routing_weights},
    as_kernel=True,
)
