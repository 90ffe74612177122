"""gptoss::adapter_delta: what LoRA adapters add to a product with a matrix, each token that of its own adapter.

    out[t] = b[s] (a[s] x[t])    with s = adapter[t];    0 where s is -1

Shapes (S adapter slots of rank R)
  x        [T, K]
  a        [S, R, K]
  b        [S, N, R]      with the adapter's scale
  adapter  [T] int64      0 to S - 1, or -1: none
  returns  [T, N], dtype of x; sums are float32

The factors are finite. No result depends on other tokens or on the factors of other slots.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import draw
from .draw import Draw
from .op import Case, Op


def reference(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, adapter: torch.Tensor) -> torch.Tensor:
    """The op's meaning in plain PyTorch.

    It reads the factors of all slots once: those of all are no larger than a small matrix, and a gather for each token
    would copy them."""
    slots, rank, _ = a.shape
    low = x.float() @ a.flatten(0, 1).float().T  # [T, S R]
    low = torch.where(chosen(adapter, slots, rank), low, 0.0)
    return (low @ b.permute(1, 0, 2).flatten(1).float().T).to(x.dtype).contiguous()


def chosen(adapter: torch.Tensor, slots: int, rank: int) -> torch.Tensor:
    """For each token which of the ranks of all slots are those of its adapter: [T, S R] bool."""
    of_slots = adapter[:, None] == torch.arange(slots, device=adapter.device)
    return of_slots.repeat_interleave(rank, dim=1)


def fake(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, adapter: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.size(0), b.size(1))


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One token to a chunk; no adapter, one, several in one call; one slot; ranks that no tile divides."""
    shapes = {
        # label: (inputs, outputs, slots, rank, adapters)
        "one token": (96, 64, 3, 8, [1]),
        "one token without an adapter": (64, 160, 2, 4, [-1]),
        "one slot": (64, 96, 1, 16, [0, -1, 0]),
        "each its own, rank 1": (160, 64, 4, 1, [3, 0, -1, 2, 1]),
        "chunk of several, rank 5": (96, 48, 3, 5, [2] * 16 + [-1] * 16 + [0] * 9),
    }
    for label, (inputs, outputs, slots, rank, adapters) in shapes.items():
        random = torch.Generator().manual_seed(len(label))

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(shape, generator=random)).to(device, dtype)  # noqa: B023

        arguments = {
            "x": normal(len(adapters), inputs),
            "a": normal(slots, rank, inputs, scale=inputs**-0.5),
            "b": normal(slots, outputs, rank, scale=rank**-0.5),
            "adapter": torch.tensor(adapters, device=device),
        }
        yield Case(label, arguments)


def drawn_adapters(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Adapters [T] of any slot, and none."""
    slots = next(draw.arguments[name].size(0) for name in ("a", "gate_up_a") if name in draw.arguments)
    return (draw.uniform(*like.shape) * (slots + 1)).floor().long() - 1


OP = Op(
    name="adapter_delta",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={"a": draw.matrix, "b": draw.matrix, "adapter": drawn_adapters},
)
