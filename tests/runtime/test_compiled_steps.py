"""A step of an aoti artifact is programs, copies and memory: torch computes nothing between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_export import Runner, SamplingParams
from gptoss_export.compat.packaged_program import PackagedProgram
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.choosing import Chooser
from gptoss_export.runtime.executor import Sampling
from gptoss_export.runtime.program_executor import ProgramExecutor
from gptoss_export.runtime.with_torch.choices import IN_TORCH

COPIES = {"aten::copy_"}
MEMORY = {"aten::empty.memory_format", "aten::select.int", "aten::slice.Tensor", "aten::detach", "aten::alias"}
GIVEN = {
    Choice.MOST_LIKELY: SamplingParams(),
    Choice.DRAWN: SamplingParams(0.9, seed=3),
    Choice.LIMITED: SamplingParams(0.9, 40, 0.9, seed=3),
    Choice.ADJUSTED: SamplingParams(0.9, seed=4, repetition_penalty=1.3, logit_bias={7: 2.0}, top_logprobs=3),
}

pytestmark = pytest.mark.torch_tensors


class Recorder(TorchDispatchMode):
    """Records the names of torch's operators that are called, but for those inside of a compiled program."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.runs = 0
        self._inside = False
        run = PackagedProgram.run

        def uncounted(program: PackagedProgram, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            self.runs += 1
            with self._program():
                return run(program, inputs)

        patch.setattr(PackagedProgram, "run", uncounted)

    @contextmanager
    def _program(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside:
            self.operators.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def begun(runner: Runner, choice: Choice) -> tuple[ProgramExecutor, list[int]]:
    """The executor after the step that places the rows of two sequences; and the lengths of all slots."""
    executor = runner.executor
    assert isinstance(executor, ProgramExecutor)
    for slot in (0, 1):
        runner.prefill(range(20 + slot), slot)
        runner.slots.reserve(slot, 8)
    executor.set_sampling({slot: Sampling(GIVEN[choice], [1, 2, 3]) for slot in (0, 1)})
    lengths = runner.slots.lengths()
    executor.step([0, 1], lengths, choice)
    return executor, [length + 1 for length in lengths]


@pytest.mark.parametrize("choice", Choice)
def test_a_step_is_programs_and_copies(runner: Runner, recorder: Recorder, choice: Choice) -> None:
    executor, lengths = begun(runner, choice)
    recorder.runs = 0
    with recorder:
        for step in range(3):
            executor.step([0, 1], [length + step for length in lengths], choice)
            pending = executor.pending_tokens(keep_logits=False)
    assert recorder.runs == (3 if choice == Choice.MOST_LIKELY else 6)
    assert COPIES < set(recorder.operators) <= COPIES | MEMORY
    assert set(pending.wait()[0]) == {0, 1}


def test_rows_without_a_sequence_stay(runner: Runner) -> None:
    executor, lengths = begun(runner, Choice.MOST_LIKELY)
    for step in range(2):
        assert executor.steps[3].rows.positions.tolist() == [lengths[0] + step, lengths[1] + step, -1]
        executor.step([0, 1], [length + step for length in lengths], Choice.MOST_LIKELY)


def test_the_recorder_sees_operators(runner: Runner, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, lengths = begun(runner, Choice.LIMITED)
    for step in executor.steps.values():
        monkeypatch.setattr(step, "_chooser", Chooser(executor._sampling, IN_TORCH))
    with recorder:
        executor.step([0, 1], lengths, Choice.LIMITED)
    assert {"aten::sort.stable", "aten::cumsum"} <= set(recorder.operators)
