"""A captured program gives what the program gives, for each of its inputs, call after call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch

from gptoss_export.runtime.captured_program import CapturedProgram
from gptoss_export.runtime.with_torch.tensors import TorchTensors


@dataclass
class Doubling:
    """Counts its calls, of which the first `fails` fail."""

    device: torch.device
    size: int
    fails: int = 0
    calls: int = 0
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = {"x": torch.zeros(self.size, device=self.device)}

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls <= self.fails:
            raise torch.OutOfMemoryError("none left")
        return {"y": 2 * self.inputs["x"] + 1}


def captured_program(program: Doubling, pool: Callable[[], Any]) -> CapturedProgram:
    return CapturedProgram(program, TorchTensors(program.device), pool)


def results(program: CapturedProgram, numbers: list[float]) -> list[float]:
    """The first element of the output for each number as input."""
    found = []
    for number in numbers:
        program.inputs["x"].fill_(number)
        found.append(float(program()["y"][0]))
    return found


def test_on_a_cpu_every_call_runs_the_program() -> None:
    program = Doubling(torch.device("cpu"), 3)
    assert results(captured_program(program, _no_pool), [0, 1, 2, 3]) == [1, 3, 5, 7]
    assert program.calls == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
def test_on_a_gpu_the_second_call_captures_and_programs_share_memory() -> None:
    device, pool = torch.device("cuda", torch.cuda.current_device()), cache(torch.cuda.graph_pool_handle)
    programs = [Doubling(device, size) for size in (5, 1 << 20)]
    captured = [captured_program(program, pool) for program in programs]
    for number in 1.0, 2.0, 3.0, 4.0:
        assert [results(program, [number]) for program in captured] == 2 * [[2 * number + 1]]
    assert [program.calls for program in programs] == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
def test_a_program_that_has_failed_runs_once_before_it_is_captured() -> None:
    program = Doubling(torch.device("cuda", torch.cuda.current_device()), 5, fails=1)
    captured = captured_program(program, torch.cuda.graph_pool_handle)
    with pytest.raises(torch.OutOfMemoryError):
        captured()
    assert results(captured, [1.0, 2.0, 3.0]) == [3, 5, 7]
    assert program.calls == 3  # the failure, one as it is, one captured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
def test_without_memory_for_a_capture_every_call_runs_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(TorchTensors, "capture", no_memory)
    program = Doubling(torch.device("cuda", torch.cuda.current_device()), 5)
    assert results(captured_program(program, torch.cuda.graph_pool_handle), [1.0, 2.0, 3.0]) == [3, 5, 7]
    assert program.calls == 3


def _no_pool() -> Callable[[], object]:
    raise AssertionError("a CPU has no pool of graphs")
