"""gptoss::sum_ranks: the sum of a tensor over the ranks that share a model.

    returns  x of rank 0 + x of rank 1 + ...

Each rank calls the op at the same place of the same program, with the same shape, and all of them get the same bits.

Shapes
  x        any shape and floating-point dtype, contiguous
  ranks    int, how many there are
  returns  as x

The reference is c10d's functional all-reduce in the process group GROUP (model/ranks.py), which a compiled program
calls by a C function: gloo's on a CPU, NCCL's on a GPU. Both add in an order that depends on the shape and on nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..ranks import GROUP
from .op import Case, Op


def reference(x: torch.Tensor, ranks: int) -> torch.Tensor:
    if ranks == 1:
        return x.clone()
    summed = torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", GROUP)
    return torch.ops._c10d_functional.wait_tensor(summed)


def fake(x: torch.Tensor, ranks: int) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One rank: several are several processes (tests/ranks)."""
    yield Case("one rank", {"x": torch.arange(6, device=device, dtype=dtype).view(2, 3), "ranks": 1})


OP = Op(name="sum_ranks", reference=reference, fake=fake, cases=cases)
