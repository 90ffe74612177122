"""What a runner refuses before and while it computes. The executor draws scripted tokens, so nothing is compiled."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generation import Pending, Scripted

from gptoss_export import Runner, SamplingParams
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import RunError
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.executor import PendingTokens

DRAWN = [5, 6, 7, 8, 9]


@dataclass
class Waiting(Scripted):
    """Waits in every step until `go` is set; `entered` is set when it is there."""

    entered: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        self.entered.set()
        assert self.go.wait(60)
        super().step(slots, lengths, choice)


@dataclass
class Broken(Scripted):
    """Draws a token that has no finite log probability, at step number `at`."""

    at: int = 2
    value: float = float("nan")

    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        pending = super().pending_tokens(keep_logits)
        assert isinstance(pending, Pending)
        if self.drawn[0] > self.at:
            pending.logprobs[0] = self.value
        return pending


def runner_of(folder: Path, kind: type[Scripted] = Scripted, overlaps: bool = False, **more: Any) -> Runner:
    manifest = load_manifest(folder)
    scripts = [list(DRAWN) for _ in range(manifest.sizes.max_batch)]
    return Runner(manifest, folder, kind(scripts, overlaps, manifest.sizes.max_context, **more), {})


CALLS = {
    "generate": lambda runner: runner.generate([1], 2, stop_tokens=()),
    "generate_batch": lambda runner: runner.generate_batch([[1], [2]], 2, stop_tokens=()),
    "stream": lambda runner: list(runner.stream([1], 2, stop_tokens=())),
    "prefill": lambda runner: runner.prefill([1]),
    "prefill_logits": lambda runner: list(runner.prefill_logits([1])),
    "score": lambda runner: runner.score([1, 2]),
    "decode": lambda runner: runner.decode([1, None, None]),
    "truncate": lambda runner: runner.truncate(0),
    "reset": lambda runner: runner.reset(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_thread_is_refused_and_harms_nothing(uncompiled: Path, name: str) -> None:
    runner = runner_of(uncompiled, Waiting)
    executor = runner.executor
    assert isinstance(executor, Waiting)
    results: list[list[int]] = []
    first = threading.Thread(target=lambda: results.append(runner.generate([1], 4, stop_tokens=()).tokens))
    first.start()
    assert executor.entered.wait(60)
    try:
        with pytest.raises(RunError, match="another thread is in a call of this runner"):
            CALLS[name](runner)
    finally:
        executor.go.set()
        first.join(60)
    assert results == [DRAWN[:4]]
    runner.reset()  # the lock was given back


def test_a_stream_that_waits_for_its_caller_holds_nothing(uncompiled: Path) -> None:
    runner = runner_of(uncompiled)
    stream = runner.stream([1], 4, stop_tokens=())
    assert next(stream).id == DRAWN[0]
    runner.reset()
    with pytest.raises(RunError, match="another call used this runner in the meantime"):
        next(stream)
    runner.reset()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("overlaps", [False, True])
def test_a_number_that_is_not_finite_ends_the_sequence(uncompiled: Path, overlaps: bool, value: float) -> None:
    runner = runner_of(uncompiled, Broken, overlaps, at=2, value=value)
    found = []
    with pytest.raises(RunError, match=f"slot 0: the log probability of token {DRAWN[2]} is {value}"):
        for token in runner.stream([1], 5, stop_tokens=()):
            found.append(token.id)
    assert found == DRAWN[:2]
    assert runner.length() == 3  # the prompt and two tokens, and no speculated one


def test_stop_tokens_of_any_integer_type_stop(uncompiled: Path) -> None:
    for stop in (torch.tensor([DRAWN[1]]), [torch.tensor(DRAWN[1])], (DRAWN[1],), {DRAWN[1]}):
        assert runner_of(uncompiled).generate([1], 4, stop_tokens=stop).finish == "stop"


@pytest.mark.parametrize("stop", [-1, 512, 2**63])
def test_stop_tokens_outside_of_the_vocabulary_are_refused(uncompiled: Path, stop: int) -> None:
    with pytest.raises(RunError, match=f"stop token {stop}: expected ids of 0 to 511"):
        runner_of(uncompiled).generate([1], 4, stop_tokens=[stop])


@pytest.mark.parametrize("stop", ["1", 1.5, None])
def test_stop_tokens_that_are_no_integers_are_refused(uncompiled: Path, stop: Any) -> None:
    with pytest.raises(RunError, match="stop tokens: expected whole numbers"):
        runner_of(uncompiled).generate([1], 4, stop_tokens=[stop])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "1"},
        {"temperature": True},
        {"top_k": 2**63},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": None},
        {"seed": 0.5},
        {"seed": "7"},
    ],
)
def test_sampling_parameters_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(RunError) as caught:
        SamplingParams(**wrong)
    assert f"{name}: found {value!r}" in str(caught.value)
