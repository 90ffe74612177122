"""gptoss_triton::sum_ranks: `gptoss::sum_ranks` for NVIDIA GPUs that share a model, for up to CELLS numbers.

The contract is in gptoss_export/model/ops/sum_ranks.py, with the memory that the ranks send to. More numbers (a chunk)
are summed by the op's reference, NCCL.

The sum of a step has a few thousand numbers, so that its time is the time of one message. A number and its flag are
therefore one store: a cell of 64 bits holds the number and FULL, and such a store is seen whole or not at all. There is
nothing to order: no fence, and no second message that says that the first has come. NCCL's protocol for small messages
(LL) does the same.

  - A program sends BLOCK numbers to all ranks, itself included. It waits until its own cells of every rank are full,
    and adds them in the order of the ranks. So all ranks have the same bits.
  - It empties the cells that it has read. They are filled again by the sum after the next one: sums use the two halves
    of the memory in turn. A rank sends its part of that sum only after it has the part of this rank of the sum between,
    which is sent after the cells were emptied.
  - The kernel counts in memory which half is next, so that a CUDA graph can be replayed. Each program reads the count,
    then says that it has; the last one to say so changes it. The next sum reads it after it has waited for the kernel
    before it (dependent_launch.py).
  - No program waits for another one of its GPU. A GPU starts programs in the order of their numbers, so that the lowest
    one that has not ended runs on all ranks.

A program that waits for longer than PATIENCE says so and goes on with what it has, and nobody waits after that. The
host reads it before it uses a result.

Where the addresses are 0 the kernel does nothing: a compiler that times the kernels which it makes runs this one too,
with inputs of zeros.

A program is one warp: the numbers are spread over as many SMs as possible, and it needs no barriers.
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
from gptoss_export.model.ops.sum_ranks import FULL
from gptoss_export.model.places import CELLS, COUNTERS, FIRST_MEMORY, LATE, WHICH

from .arch import has_dependent_launch, has_inline_assembly
from .dependent_launch import wait_then_let_next_start

PATIENCE = 7_000_000_000  # nanoseconds that a program waits for another rank

_FULL = tl.constexpr(FULL)
_CELLS = tl.constexpr(CELLS)
_WHICH, _COUNTERS, _LATE, _FIRST_MEMORY = map(tl.constexpr, (WHICH, COUNTERS, LATE, FIRST_MEMORY))
_PATIENCE = tl.constexpr(PATIENCE)


class Sum(NamedTuple):
    """Launch config: numbers of a program, warps."""

    numbers: int
    warps: int


@triton.jit
def _nanoseconds(now, CLOCK: tl.constexpr):
    """The time. `now` is anything that changes from call to call: the assembly is declared pure (dependent_launch.py),
    and two calls with the same arguments would be one."""
    time = now.to(tl.int64)
    if CLOCK:
        time = tl.inline_asm_elementwise(
            "{ .reg .s32 ignored; mov.s32 ignored, $1; mov.u64 $0, %globaltimer; }",
            "=l,r",
            [now],
            dtype=tl.int64,
            is_pure=True,
            pack=1,
        )
    return time


@triton.jit
def _sum_ranks_pdl(
    x,
    residual,
    places,
    out,
    COUNT: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """BLOCK of COUNT sums over RANKS ranks, plus the residual."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < COUNT
    rank = tl.load(places + _WHICH)
    address = tl.load(places + _COUNTERS)
    if address == 0:
        return
    counters = address.to(tl.pointer_type(tl.int32))
    received = tl.load(places + _FIRST_MEMORY + rank).to(tl.pointer_type(tl.int64))
    zero = wait_then_let_next_start(EARLY)
    x += zero
    residual += zero
    counters += zero
    received += zero
    half = tl.load(counters, volatile=True)
    late = tl.load(counters + 2, volatile=True)
    number = tl.load(x + cell, mask=inside, other=0.0).to(tl.float32)
    word = (number.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | (_FULL << 32)
    at = half.to(tl.int64) * (RANKS * _CELLS) + cell
    for to in tl.static_range(RANKS):
        memory = tl.load(places + _FIRST_MEMORY + to).to(tl.pointer_type(tl.int64)) + zero
        tl.store(memory + at + rank * _CELLS, word, mask=inside)
    tl.debug_barrier()  # all threads have read the half, which their addresses depend on
    # Relaxed: to release would be to wait until the other ranks have the numbers.
    if tl.atomic_add(counters + 1, 1, sem="relaxed") == tl.num_programs(0) - 1:
        tl.store(counters + 1, 0)
        tl.store(counters, 1 - half)
    total = tl.zeros([BLOCK], tl.float32)
    begin = _nanoseconds(half, CLOCK)
    for source in tl.static_range(RANKS):
        cells = received + at + source * _CELLS
        found = tl.load(cells, mask=inside, other=_FULL << 32, volatile=True)
        full = tl.min(found >> 32, 0).to(tl.int32)
        while (full != _FULL) & (late == 0):
            found = tl.load(cells, mask=inside, other=_FULL << 32, volatile=True)
            full = tl.min(found >> 32, 0).to(tl.int32)
            late = (_nanoseconds(full, CLOCK) - begin > _PATIENCE).to(tl.int32)
        tl.store(cells, tl.zeros([BLOCK], tl.int64), mask=inside)
        total += found.to(tl.int32).to(tl.float32, bitcast=True)
    if late != 0:
        tl.store(counters + 2, 1)
        tl.store(tl.load(places + _LATE).to(tl.pointer_type(tl.int32)), 1)
    if RESIDUAL:
        total = tl.load(residual + cell, mask=inside, other=0.0) + total
    tl.store(out + zero + cell, total.to(out.dtype.element_ty), mask=inside)


@triton_op("gptoss_triton::sum_ranks", mutates_args={})
def sum_ranks(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    places: torch.Tensor,
    ranks: int,
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
        RANKS=ranks,
        BLOCK=launch.numbers,
        RESIDUAL=residual is not None,
        CLOCK=has_inline_assembly(arch),
        EARLY=has_dependent_launch(arch),
        num_warps=launch.warps,
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
        default={"sum": Sum(numbers=256, warps=1)},
        options={"sum": {"numbers": (128, 256, 512, 1024), "warps": (1, 2, 4)}},
    )


KERNEL = Kernel(sum_ranks, config_space, covers)
