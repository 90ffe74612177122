"""gptoss::mxfp4_experts: the routed feed-forward of a mixture of experts with MXFP4 weights.

For token t and each expert e among its K choices, with routing weight r:

    gate, up = even and odd rows of  W1[e] x[t] + b1[e]
    act      = (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g),   g = min(gate, limit)
    out[t]  += r * (W2[e] act + b2[e])

(as in the reference PyTorch model published with gpt-oss, and in Hugging Face's GptOssExperts). W1 has 2 I rows of
length H, W2 has H rows of length I. Both are MXFP4 in the layout of model/mxfp4.py.

Shapes
  x                  [T, H]
  routing_weights    [T, K] float32
  expert_indices     [T, K] int64          0 to E - 1, or -1: adds nothing
  gate_up_blocks     [E, 2 I, H // 32, 16] uint8,   gate_up_scales [E, 2 I, H // 32] uint8
  gate_up_bias       [E, 2 I]
  down_blocks        [E, H, I // 32, 16] uint8,     down_scales    [E, H, I // 32] uint8
  down_bias          [E, H]
  alpha, limit       float
  returns            [T, H], dtype of x; sums are float32

An implementation may round `act`, and the result of each pair before the sum, to the dtype of x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import mxfp4
from . import draw
from .draw import Draw
from .op import Case, Op


def reference(
    x: torch.Tensor,
    routing_weights: torch.Tensor,
    expert_indices: torch.Tensor,
    gate_up_blocks: torch.Tensor,
    gate_up_scales: torch.Tensor,
    gate_up_bias: torch.Tensor,
    down_blocks: torch.Tensor,
    down_scales: torch.Tensor,
    down_bias: torch.Tensor,
    alpha: float,
    limit: float,
) -> torch.Tensor:
    """The op's meaning in plain PyTorch, in float32.

    A graph of static shape cannot compute "the routed experts only" in one way for all sizes. With few choices it
    gathers the weights of each. With many (a prefill chunk) it unpacks every expert once and multiplies densely,
    since nearly every expert is needed then."""
    experts = gate_up_blocks.size(0)
    chosen = expert_indices >= 0
    weights = torch.where(chosen, routing_weights.float(), 0.0)
    indices = expert_indices.clamp(min=0)
    tokens, choices = indices.shape
    if tokens * choices <= experts:
        pairs = indices.flatten()
        inputs = x.float().repeat_interleave(choices, dim=0).unsqueeze(1)  # [T K, 1, H]
        mixed = _feed_forward(
            inputs,
            gate_up_blocks[pairs], gate_up_scales[pairs], gate_up_bias[pairs],
            down_blocks[pairs], down_scales[pairs], down_bias[pairs],
            alpha, limit,
        )  # fmt: skip
        # A weight of zero times NaN is NaN: a place without an expert must not count.
        mixed = torch.where(chosen.unsqueeze(-1), mixed.view(tokens, choices, -1), 0.0)
        out = (mixed * weights.unsqueeze(-1)).sum(dim=1)
    else:
        inputs = x.float().unsqueeze(0).expand(experts, -1, -1)
        mixed = _feed_forward(
            inputs, gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias,
            alpha, limit,
        )  # fmt: skip
        one_hot = indices.unsqueeze(-1) == torch.arange(experts, device=x.device)  # [T, K, E]
        gates = torch.where(one_hot, weights.unsqueeze(-1), 0.0).sum(dim=1)  # [T, E]
        # In the same way an expert that the token did not choose must not count.
        picked = (one_hot & chosen.unsqueeze(-1)).any(dim=1)
        mixed = torch.where(picked.T.unsqueeze(-1), mixed, 0.0)
        out = torch.einsum("te,eth->th", gates, mixed)
    return out.to(x.dtype).contiguous()


def _feed_forward(
    x: torch.Tensor,
    blocks1: torch.Tensor,
    scales1: torch.Tensor,
    bias1: torch.Tensor,
    blocks2: torch.Tensor,
    scales2: torch.Tensor,
    bias2: torch.Tensor,
    alpha: float,
    limit: float,
) -> torch.Tensor:
    """[P, M, H] through P experts, in float32: one batched product for each matrix."""
    hidden = torch.bmm(x, mxfp4.dequantize(blocks1, scales1).mT) + bias1.float().unsqueeze(1)
    act = swiglu(hidden, alpha, limit)
    return torch.bmm(act, mxfp4.dequantize(blocks2, scales2).mT) + bias2.float().unsqueeze(1)


def swiglu(hidden: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """Interleaved gate and up [..., 2 I] to [..., I], clamped, with the (up + 1) of gpt-oss."""
    gate = hidden[..., 0::2].clamp(max=limit)
    up = hidden[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One token to a chunk, K = 1 and 4, unchosen entries, experts that nobody chose, sizes that no tile divides."""
    shapes = {
        # label: (tokens, hidden, intermediate, experts, choices, routing)
        "one token": (1, 64, 64, 8, 4, "random"),
        "one token, one choice": (1, 96, 32, 4, 1, "random"),
        "two tokens, one idle": (2, 160, 96, 8, 4, "idle"),
        "two tokens, one choice, one idle": (2, 96, 64, 8, 1, "idle"),
        "chunk": (40, 96, 160, 8, 2, "random"),
        "chunk, all to one expert": (70, 64, 64, 8, 1, "same"),
        "chunk, mostly padding": (33, 64, 96, 4, 2, "idle"),
        "chunk, more experts than pairs": (9, 64, 64, 40, 4, "random"),
    }
    for label, (tokens, hidden, inter, experts, choices, routing) in shapes.items():
        random = torch.Generator().manual_seed(len(label))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device, dtype)  # noqa: B023

        def packed(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
            weights = torch.randn(experts, rows, columns, generator=random) * columns**-0.5  # noqa: B023
            blocks, scales = mxfp4.quantize(weights)
            return blocks.to(device), scales.to(device)

        scores = torch.rand(tokens, experts, generator=random)
        indices = scores.topk(choices, dim=1).indices
        if routing == "same":
            indices = torch.full_like(indices, experts - 1)
        if routing == "idle":
            indices[1:] = -1
        weights = torch.rand(tokens, choices, generator=random).softmax(dim=1)
        gate_up, down = packed(2 * inter, hidden), packed(hidden, inter)
        arguments = {
            "x": normal(tokens, hidden),
            "routing_weights": weights.to(device),
            "expert_indices": indices.to(device),
            "gate_up_blocks": gate_up[0],
            "gate_up_scales": gate_up[1],
            "gate_up_bias": 3 * normal(experts, 2 * inter),
            "down_blocks": down[0],
            "down_scales": down[1],
            "down_bias": normal(experts, hidden),
            "alpha": 1.702,
            "limit": 7.0,
        }
        yield Case(label, arguments)


def _indices(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Choices [T, K] of distinct experts, each expert as likely as any other."""
    experts = draw.arguments["down_blocks"].size(0)
    return draw.uniform(like.size(0), experts).topk(like.size(1), dim=1).indices


def _routing_weights(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Weights [T, K] that sum to 1 for each token."""
    return draw.uniform(*like.shape).softmax(dim=1)


PACKED_WEIGHTS = {
    "gate_up_blocks": draw.blocks,
    "gate_up_scales": draw.scales,
    "down_blocks": draw.blocks,
    "down_scales": draw.scales,
}
OP = Op(
    name="mxfp4_experts",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={**PACKED_WEIGHTS, "expert_indices": _indices, "routing_weights": _routing_weights},
    as_kernel=True,
)
