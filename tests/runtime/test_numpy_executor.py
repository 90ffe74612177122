"""The executor that chooses on the host: which logits, position and parameters each choice is made from, and where each
chunk of a prompt begins. The model is a fake one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sampling_definition import chosen_token, logprob

from gptoss_export import SamplingParams

pytest.importorskip("onnxruntime")

from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.executor import Outputs, Part, Prompt, Sampling
from gptoss_export.targets.onnx.executor_cpu import CpuExecutor

SLOTS, VOCABULARY = 2, 40


class FixedLogits:
    """Its logits depend on the row alone. It records its calls."""

    kv_cache_bytes = 0

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.prompt_logits = 2 * random.standard_normal((1, VOCABULARY)).astype(np.float32)
        self.logits = 2 * random.standard_normal((SLOTS, VOCABULARY)).astype(np.float32)
        self.calls: list[Any] = []

    def prefill(self, tokens: Sequence[int], slot: int, start: int, last_only: bool) -> np.ndarray:
        self.calls.append((list(tokens), slot, start, last_only))
        return self.prompt_logits if last_only else np.repeat(self.prompt_logits, len(tokens), axis=0)

    def decode(self, tokens: Mapping[int, int], lengths: Sequence[int]) -> np.ndarray:
        self.calls.append((dict(tokens), list(lengths)))
        return self.logits


@pytest.fixture
def executor() -> CpuExecutor:
    sizes = SimpleNamespace(max_batch=SLOTS, prefill_chunks=(2, 4))
    manifest: Any = SimpleNamespace(sizes=sizes, model=SimpleNamespace(vocab_size=VOCABULARY))
    model: Any = FixedLogits()
    return CpuExecutor(manifest, model)


def test_a_choice_leaves_the_tokens_of_other_slots_alone(executor: CpuExecutor) -> None:
    """A sequence that joins must not change what those beside it have drawn."""
    params = SamplingParams(5.0, seed=3)
    executor.set_sampling(dict.fromkeys(range(SLOTS), Sampling(params)))
    for slot in range(SLOTS):
        (output,) = executor.prefill(Part(slot, 0, [1, 2], ends=True), Outputs.LAST)
        executor.keep_output(slot, output)
    lengths = [9] * SLOTS
    executor.choose_first([0], lengths, Choice.DRAWN)
    drawn = executor.pending_tokens(keep_logits=False)
    executor.choose_first([1], lengths, Choice.MOST_LIKELY)
    row = executor.model.prompt_logits[0].tolist()  # type: ignore[attr-defined]
    expected = chosen_token(row, 8, params)
    assert drawn.wait()[0][0] == executor.pending_tokens(keep_logits=False).wait()[0][0] == expected
    assert expected != chosen_token(row, 8, SamplingParams())  # the test would show it
    executor.step([0], lengths, Choice.DRAWN)
    assert executor.model.calls[-1][0] == {0: expected}  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", Outputs)
def test_chunks(executor: CpuExecutor, wanted: Outputs) -> None:
    tokens = list(range(10))
    part = executor.chunk_of(Prompt(1, 7, tokens))
    assert part == Part(1, 7, tokens[:4], ends=False)
    assert executor.chunk_of(Prompt(1, 15, tokens[8:])) == Part(1, 15, [8, 9], ends=True)
    rows = [len(output.logits) for output in executor.prefill(part, wanted)]
    assert rows == {Outputs.NONE: [], Outputs.LAST: [1], Outputs.EVERY: [4]}[wanted]
    calls = executor.model.calls  # type: ignore[attr-defined]
    assert calls == [(tokens[:4], 1, 7, wanted != Outputs.EVERY)]


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(1.0, seed=7), SamplingParams(0.8, 9, 0.9)], ids=str
)
def test_choices(executor: CpuExecutor, params: SamplingParams) -> None:
    """A prompt of n tokens: the first choice is made at position n - 1, that of its last token; each step's at the
    position of the token that it appends."""
    choice = Choice.LIMITED if params.limits else Choice.DRAWN if params.temperature > 0 else Choice.MOST_LIKELY
    executor.set_sampling(dict.fromkeys(range(SLOTS), Sampling(params)))
    for slot in range(SLOTS):
        (output,) = executor.prefill(Part(slot, 0, [1, 2], ends=True), Outputs.LAST)
        executor.keep_output(slot, output)
    executor.choose_first([0, 1], [5, 30], choice)
    tokens, logprobs, logits = executor.pending_tokens(keep_logits=True).wait()
    row = executor.model.prompt_logits[0].tolist()  # type: ignore[attr-defined]
    assert [tokens[slot] for slot in (0, 1)] == [chosen_token(row, 4, params), chosen_token(row, 29, params)]
    assert [logprobs[slot] for slot in (0, 1)] == pytest.approx(
        [logprob(row, tokens[0]), logprob(row, tokens[1])], abs=1e-5
    )
    assert logits is not None and logits[0].tolist() == row

    previous = tokens
    executor.step([0, 1], [5, 30], choice)
    tokens, logprobs, logits = executor.pending_tokens(keep_logits=False).wait()
    rows = executor.model.logits.tolist()  # type: ignore[attr-defined]
    assert executor.model.calls[-1] == ({0: previous[0], 1: previous[1]}, [5, 30])  # type: ignore[attr-defined]
    assert [tokens[slot] for slot in (0, 1)] == [chosen_token(rows[0], 5, params), chosen_token(rows[1], 30, params)]
    expected = [logprob(rows[slot], tokens[slot]) for slot in (0, 1)]
    assert [logprobs[slot] for slot in (0, 1)] == pytest.approx(expected, abs=1e-5)
    assert logits is None
