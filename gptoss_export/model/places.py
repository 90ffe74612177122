"""What a program knows of the ranks that share a model: its input `places`, int64 [FIRST_MEMORY + ranks].

  places[WHICH]             which rank this is
  places[COUNTERS]          address of int32 [COUNTS] in the memory of this GPU
  places[LATE]              address of int32 [1] in the memory of the host
  places[FIRST_MEMORY + r]  address of int64 [BOXES, ranks, CELLS], what rank r receives, in memory that all GPUs reach

The addresses are 0 on a CPU. model/ops/sum_ranks.py says what a kernel does with this memory, which is zeros at first.

Sums send to boxes of this memory. A box is used again after another one at the earliest: the sums of attention and of
experts take turns, and all others use two boxes in turn.

Imports no torch.
"""

from __future__ import annotations

from enum import IntEnum

WHICH, COUNTERS, LATE, FIRST_MEMORY = range(4)
COUNTS = 3
BOXES = 4
PATIENCE = 7.0  # seconds that a rank waits for the others in a sum
CELLS = 1 << 18  # numbers that a kernel sums over the ranks at a time, at most: 90 tokens of 2,880


class Box(IntEnum):
    """Which memory a sum uses."""

    ATTENTION = 0
    EXPERTS = 1
    IN_TURN = 2  # and the one behind it


def received_bytes(ranks: int) -> int:
    """Size of the memory that a rank receives in."""
    return BOXES * ranks * CELLS * 8
