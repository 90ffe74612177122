"""Sums over the ranks that share a model, inside of a kernel.

gptoss_export/model/ops/sum_ranks.py says what the memory is that ranks send to.

The sum of a decode step has a few thousand numbers, so that its time is the time of one message. A number and its flag
are therefore one store: a cell of 64 bits holds the number and FULL, and such a store is seen whole or not at all.
There is nothing to order: no fence, and no second message that says that the first has come. NCCL's protocol for small
messages (LL) does the same.

  - A program sends its numbers to all ranks, itself included. It waits until its own cells of every rank are full, and
    adds them in the order of the ranks. So all ranks have the same bits, whatever launch config each of them has.
  - It empties the cells that it has read. They are filled again by a later sum of the same box. Between the two is a
    sum of another box: a rank sends again only after it has the part of this rank of that sum, which is sent after the
    cells were emptied.
  - It sends before it waits, and no program waits for another one of its GPU. A GPU starts programs in the order of
    their numbers, so that the lowest one that has not ended runs on all ranks. So the ranks never wait in a circle,
    whether all programs of a kernel fit on a GPU or not.

  - Where a program has fewer numbers than threads, several warps have the same ones, and each of them waits for itself.
    So a program has at most 32 numbers, which every warp has, or one for each thread or more. In between, warps that
    have waited for different numbers of rounds would meet at the barriers of a reduction.

A program that waits for longer than PATIENCE says so and goes on with what it has, and nobody waits after that. The
host reads it before it uses a result.

Where the addresses are 0 nothing is sent and nobody waits: a compiler that times the kernels which it makes gives them
inputs of zeros.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from gptoss_export.model.ops import Arguments
from gptoss_export.model.ops.sum_ranks import FULL
from gptoss_export.model.places import CELLS, COUNTERS, FIRST_MEMORY, LATE, PATIENCE, WHICH, Box

from .arch import has_inline_assembly

_FULL, _CELLS = map(tl.constexpr, (FULL, CELLS))
_PATIENCE = tl.constexpr(round(PATIENCE * 1e9))  # nanoseconds
_WHICH, _COUNTERS, _LATE, _FIRST_MEMORY = map(tl.constexpr, (WHICH, COUNTERS, LATE, FIRST_MEMORY))


class Shared(NamedTuple):
    """How the result of a kernel is summed over the ranks.

    places  model/places.py; None where one rank has the whole model
    """

    places: torch.Tensor | None
    ranks: int
    box: Box

    def constants(self, arch: str) -> dict[str, Any]:
        """What kernels that call `sum_over_ranks` are compiled with."""
        return {
            "RANKS": 1 if self.places is None else self.ranks,
            "BOX": int(self.box),
            "CLOCK": has_inline_assembly(arch),
        }


ALONE = Shared(None, 1, Box.IN_TURN)  # one rank has the whole model


def fits(arguments: Arguments) -> bool:
    """Whether the ranks can exchange a result of the shape of x; True where one rank has the whole model."""
    return arguments["places"] is None or arguments["x"].numel() <= CELLS


@triton.jit
def sum_over_ranks(part, cell, inside, places, box, zero, RANKS: tl.constexpr, CLOCK: tl.constexpr):
    """The sum of `part` float32 over the ranks; the same shape.

    cell    which numbers of the whole sum they are, in the shape of part
    inside  which of them there are
    box     of the sum
    zero    that `wait_for_previous` returned
    """
    if tl.load(places + _COUNTERS) != 0:
        rank = tl.load(places + _WHICH)
        counters = tl.load(places + _COUNTERS).to(tl.pointer_type(tl.int32)) + zero
        late = tl.load(counters + 2, volatile=True)
        word = (part.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | (_FULL << 32)
        at = box * (RANKS * _CELLS) + cell
        for to in tl.static_range(RANKS):
            memory = tl.load(places + _FIRST_MEMORY + to).to(tl.pointer_type(tl.int64)) + zero
            tl.store(memory + at + rank * _CELLS, word, mask=inside)
        received = tl.load(places + _FIRST_MEMORY + rank).to(tl.pointer_type(tl.int64)) + zero
        part = tl.zeros_like(part)
        begin = _nanoseconds(late, CLOCK)
        for source in tl.static_range(RANKS):
            cells = received + at + source * _CELLS
            found = tl.load(cells, mask=inside, other=_FULL << 32, volatile=True)
            done = tl.min(tl.maximum(found >> 32, late)).to(tl.int32)
            while done == 0:
                found = tl.load(cells, mask=inside, other=_FULL << 32, volatile=True)
                late = (_nanoseconds(done, CLOCK) - begin > _PATIENCE).to(tl.int32)
                done = tl.min(tl.maximum(found >> 32, late)).to(tl.int32)
            tl.debug_barrier()  # all warps have read the cells
            tl.store(cells, tl.zeros_like(found), mask=inside)
            part += found.to(tl.int32).to(tl.float32, bitcast=True)
        if late != 0:
            tl.store(counters + 2, 1)
            tl.store(tl.load(places + _LATE).to(tl.pointer_type(tl.int32)), 1)
    return part


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
