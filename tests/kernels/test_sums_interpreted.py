"""Kernels that sum over two ranks, in Triton's interpreter. The memory of this rank has the numbers of the other one.

The cases run in a process of their own, which is this file run as a script, as in test_interpreted.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gptoss_plugins.arch import INTERPRETER
from interpreter_process import found_by_interpreter
from kernel_cases import CPU

from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.ops import OPS
from gptoss_export.model.ops.sum_ranks import FULL
from gptoss_export.model.places import BOXES, CELLS, COUNTERS, COUNTS, FIRST_MEMORY, LATE, WHICH, Box
from gptoss_export.verification.metric import TOLERANCES, Deviation, deviation

# The kernels that end a sublayer, of one token and of a batch, and the sum alone; and which rank this is.
CASES = (
    ("attention_sublayer", "one token, the first", 0),
    ("attention_sublayer", "batch, ragged, one idle", 1),
    ("experts_sublayer", "one token, one choice", 1),
    ("experts_sublayer", "chunk, all to one expert", 0),
    ("sum_ranks", "a row, residual", 0),
    ("sum_ranks", "a row, residual", 1),
    ("sum_ranks", "few, no residual", 1),
)
BOX = {"attention_sublayer": Box.ATTENTION, "experts_sublayer": Box.EXPERTS}


class TwoRanks:
    """The memory of two ranks of which this is one. A box that was used has numbers of the other rank in it."""

    def __init__(self, rank: int) -> None:
        self.rank, self.late = rank, torch.zeros(1, dtype=torch.int32)
        self.counters = torch.zeros(COUNTS, dtype=torch.int32)
        self.received = torch.zeros(2, BOXES, 2, CELLS, dtype=torch.int64)  # of both
        self.places = torch.zeros(FIRST_MEMORY + 2, dtype=torch.int64)
        self.places[WHICH], self.places[COUNTERS] = rank, self.counters.data_ptr()
        self.places[LATE] = self.late.data_ptr()
        for index in range(2):
            self.places[FIRST_MEMORY + index] = self.received[index].data_ptr()

    def gets(self, box: int, numbers: torch.Tensor) -> None:
        """The other rank has sent these float32 numbers."""
        words = numbers.flatten().view(torch.int32).long() & 0xFFFFFFFF | FULL << 32
        self.received[self.rank, box, 1 - self.rank, : words.numel()] = words

    def sent(self, box: int, count: int) -> torch.Tensor:
        """What this rank has sent to the other one."""
        words = self.received[1 - self.rank, box, self.rank, :count]
        assert bool((words >> 32 == FULL).all())
        return (words & 0xFFFFFFFF).int().view(torch.float32)

    @property
    def is_empty(self) -> bool:
        """Whether all cells were emptied in which this rank received."""
        return not bool(self.received[self.rank].any())


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return found_by_interpreter(__file__)


@pytest.mark.parametrize(("name", "label", "rank"), CASES)
def test_the_sum_over_two_ranks(found: dict[str, Any], name: str, label: str, rank: int) -> None:
    """Twice, so that boxes in turn are both used."""
    for time in range(2):
        given = found[f"{name}/{label}/{rank}/{time}"]
        assert Deviation(*given["result"]).within(TOLERANCES[torch.float32])
        assert Deviation(*given["sent"]).within(TOLERANCES[torch.float32])
        assert given["is empty"] and not given["late"]


def interpreted(name: str, label: str, rank: int) -> dict[str, Any]:
    """The kernel of one of two ranks, against the op of one rank to which the other's numbers are added."""
    op, memory, found = OPS[name], TwoRanks(rank), {}
    arguments = next(case.arguments for case in op.cases(CPU, torch.float32) if case.label == label)
    given = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    alone = op.reference(**given)
    assert isinstance(alone, torch.Tensor)
    residual = arguments["x"] if "residual" not in arguments else arguments["residual"]
    part = alone if residual is None else alone - residual
    kernel = kernels()[name].bind(op, ConfigChooser(INTERPRETER))
    given = kernels()[name].given(arguments | {"places": memory.places, "ranks": 2})
    for time in range(2):
        box = BOX.get(name, arguments.get("box", 0))
        box += time if box == Box.IN_TURN else 0
        other = torch.randn(alone.shape, generator=torch.Generator().manual_seed(time))
        memory.gets(box, other)
        result = kernel(**given)
        sent = memory.sent(box, part.numel()).view(part.shape)
        found[f"{name}/{label}/{rank}/{time}"] = {
            "result": _numbers(deviation(result, alone + other)),
            "sent": _numbers(deviation(sent, part)),
            "is empty": memory.is_empty,
            "late": bool(memory.late) or bool(memory.counters[2]),
        }
    return found


def _numbers(deviation: Deviation) -> tuple[float, float]:
    return deviation.max, deviation.rms


if __name__ == "__main__":
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for case in CASES:
        results |= interpreted(*case)
    print(json.dumps(results))
