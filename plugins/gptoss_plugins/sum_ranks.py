"""gptoss_triton::sum_ranks: `gptoss::sum_ranks` for NVIDIA GPUs that share a model, for up to CELLS numbers.

The contract is in gptoss_export/model/ops/sum_ranks.py; rank_cells.py says how ranks exchange numbers. More numbers (a
chunk) are summed by the op's reference, NCCL. The kernels that end a sublayer sum their results themselves.

Sums that use two boxes in turn count in memory which one is next, so that a CUDA graph can be replayed. Each program
reads the count, then says that it has; the last one to say so changes it. The next sum reads it after it has waited for
the kernel before it (dependent_launch.py).

A program is one warp: the numbers are spread over as many SMs as possible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, shape_of, unflatten
from gptoss_export.model.ops import Arguments
from gptoss_export.model.places import CELLS, COUNTERS, Box

from .arch import has_dependent_launch
from .dependent_launch import wait_then_let_next_start
from .rank_cells import Shared, sum_over_ranks

_COUNTERS = tl.constexpr(COUNTERS)


class Sum(NamedTuple):
    """Launch config: numbers of a program, warps."""

    numbers: int
    warps: int


@triton.jit
def _next_box(places, zero):
    """0 or 1: which of two boxes this kernel uses. The next kernel that asks gets the other one."""
    box = 0
    address = tl.load(places + _COUNTERS)
    if address != 0:
        counters = address.to(tl.pointer_type(tl.int32)) + zero
        box = tl.load(counters, volatile=True)
        tl.debug_barrier()  # all threads have read it
        if tl.atomic_add(counters + 1, 1) == tl.num_programs(0) - 1:
            tl.store(counters + 1, 0)
            tl.store(counters, 1 - box)
    return box


@triton.jit
def _sum_ranks_pdl(
    x,
    residual,
    places,
    out,
    COUNT: tl.constexpr,
    RANKS: tl.constexpr,
    BOX: tl.constexpr,
    IN_TURN: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """BLOCK of COUNT sums over RANKS ranks, plus the residual."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < COUNT
    zero = wait_then_let_next_start(EARLY)
    part = tl.load(x + zero + cell, mask=inside, other=0.0).to(tl.float32)
    before = tl.zeros([BLOCK], tl.float32)
    if RESIDUAL:  # read before the sum: the loads wait together
        before += tl.load(residual + zero + cell, mask=inside, other=0.0)
    box = BOX
    if IN_TURN:
        box += _next_box(places, zero)
    total = before + sum_over_ranks(part, cell, inside, places, box, zero, RANKS, CLOCK)
    tl.store(out + zero + cell, total.to(out.dtype.element_ty), mask=inside)


@triton_op("gptoss_triton::sum_ranks", mutates_args={})
def sum_ranks(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    places: torch.Tensor,
    ranks: int,
    box: int,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::sum_ranks`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    (launch,) = unflatten(config, Sum)
    out = torch.empty_like(x if residual is None else residual)
    wrap_triton(_sum_ranks_pdl)[(triton.cdiv(x.numel(), launch.numbers),)](
        x.contiguous(),
        out if residual is None else residual.contiguous(),
        places,
        out,
        COUNT=x.numel(),
        IN_TURN=box == Box.IN_TURN,
        BLOCK=launch.numbers,
        RESIDUAL=residual is not None,
        EARLY=has_dependent_launch(arch),
        num_warps=launch.warps,
        **Shared(places, ranks, Box(box)).constants(arch),
    )
    return out


def covers(arguments: Arguments) -> bool:
    """Whether x has few enough numbers. Where that is not known when a program is traced it may have too many."""
    numbers = arguments["x"].numel()
    return isinstance(numbers, int) and numbers <= CELLS


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call. They depend on how many numbers there are."""
    x, ranks = arguments["x"], arguments["ranks"]
    return ConfigSpace(
        name="sum_ranks",
        shape=shape_of(x.dtype, numbers=x.numel(), ranks=ranks),
        scaled=("numbers",),
        default={"sum": Sum(numbers=128, warps=1)},
        options={"sum": {"numbers": (128, 256, 512), "warps": (1, 2, 4)}},  # rank_cells.py says why no fewer
    )


KERNEL = Kernel(sum_ranks, config_space, covers)
