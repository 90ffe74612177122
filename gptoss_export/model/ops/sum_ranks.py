"""gptoss::sum_ranks: the sum of a tensor over the ranks that share a model.

    returns  residual + (x of rank 0 + x of rank 1 + ...)

Each rank calls the op at the same place of the same program, with the same shape, and all of them get the same bits.

Shapes
  x         any shape and floating-point dtype, contiguous
  residual  as x, float32, the same on all ranks; or None
  places    [FIRST_MEMORY + ranks] int64: which rank this is, and addresses (model/places.py)
  ranks     int, how many there are
  box       int, a Box of model/places.py
  returns   the shape of x; float32, or the dtype of x where there is no residual

The reference is c10d's functional all-reduce in the process group GROUP (model/ranks.py), which a compiled program
calls by a C function: gloo's on a CPU, NCCL's on a GPU. Both add in an order that depends on the shape and on nothing
else. It reads no address.

A kernel sums up to CELLS numbers through memory that all GPUs reach. It sends the numbers of this rank into the
memory of every rank, and waits for those of the others in its own:

  what a rank receives   [BOXES, ranks, CELLS] int64, by box, sender and number. A cell is 0 while it is empty. In one
                         with a number the low 32 bits are a float32 and the high ones are FULL
  the counters           which of the boxes IN_TURN is next, 0 or 1; how many programs of the kernel have read that; 1
                         as soon as a rank did not answer, which ends all waiting
  late                   1 as soon as a rank did not answer: the results mean nothing from then on
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..places import BOXES, CELLS, COUNTERS, COUNTS, FIRST_MEMORY, LATE, Box
from ..ranks import GROUP
from .op import Case, Op

FULL = 1  # the high half of a cell with a number


def reference(
    x: torch.Tensor, residual: torch.Tensor | None, places: torch.Tensor, ranks: int, box: int
) -> torch.Tensor:
    if ranks == 1:
        return x.clone() if residual is None else residual + x
    found = _all_reduced(x.contiguous())
    return found if residual is None else residual + found


def _all_reduced(x: torch.Tensor) -> torch.Tensor:
    return torch.ops._c10d_functional.wait_tensor(torch.ops._c10d_functional.all_reduce(x, "sum", GROUP))


def fake(x: torch.Tensor, residual: torch.Tensor | None, places: torch.Tensor, ranks: int, box: int) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=x.dtype if residual is None else residual.dtype)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One rank, which sends to itself: several are several processes (tests/ranks)."""
    for label, shape in {
        "few": (2, 3),
        "one program": (256,),
        "a row": (1, 2880),
        "more than cells": (257, 1024),
    }.items():
        random = torch.Generator().manual_seed(len(shape))
        x = torch.randn(shape, generator=random).to(device, dtype)
        for residual in None, torch.randn(shape, generator=random).to(device):
            box = Box.IN_TURN if residual is None else Box.EXPERTS
            arguments = {"x": x, "residual": residual, "places": own_places(device), "ranks": 1, "box": box}
            yield Case(f"{label}, {'no residual' if residual is None else 'residual'}", arguments)


def own_places(device: torch.device) -> torch.Tensor:
    """The places of a rank that shares with none. They lie in one piece of memory with what they point to."""
    counters = FIRST_MEMORY + 1
    whole = torch.zeros(counters + COUNTS + 1 + BOXES * CELLS, dtype=torch.int64, device=device)
    for place, index in {COUNTERS: counters, LATE: counters + COUNTS, FIRST_MEMORY: counters + COUNTS + 1}.items():
        whole[place] = whole.data_ptr() + whole.element_size() * index
    return whole[:counters]


OP = Op(
    name="sum_ranks",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={"places": lambda draw, like: own_places(draw.device)},  # of one rank: several are several processes
)
