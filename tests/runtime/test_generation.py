"""Launching a step before the tokens of the last one are read, as on a GPU, gives what waiting gives: with an executor
that draws scripted tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from executor_without_tensors import ExecutorWithoutTensors, SlotOutput

from gptoss_export import SamplingParams
from gptoss_export.errors import RunError
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.executor import ChunkOutput, Outputs, Part, PendingTokens, Prompt, Sampling
from gptoss_export.runtime.generation import Generation, Token, collect, stream
from gptoss_export.runtime.running_sequence import Request
from gptoss_export.runtime.slots import Slots

STOP = 99


@dataclass
class Scripted(ExecutorWithoutTensors):
    """Slot s draws the s-th script's tokens in order."""

    scripts: list[list[int]]
    overlaps: bool
    max_context: int
    chunk: int = 4

    def __post_init__(self) -> None:
        self.overlaps_steps = self.overlaps
        self.drawn = [0] * len(self.scripts)
        self.latest: dict[int, int] = {}
        self.kept: set[int] = set()
        self.cached = [0] * len(self.scripts)  # tokens that it was given for each slot
        self.steps = 0
        self.choices: set[Choice] = set()
        self.params: dict[int, SamplingParams] = {}

    def chunk_of(self, prompt: Prompt) -> Part:
        return prompt.first(self.chunk)

    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        assert part.start in (0, self.cached[part.slot]) and outputs != Outputs.EVERY
        self.cached[part.slot] = part.start + len(part.tokens)
        return iter([SlotOutput(part.slot)] if outputs == Outputs.LAST else [])

    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        self.params |= {slot: sampling.params for slot, sampling in given.items()}

    def allow(self, masks: Mapping[int, bytes]) -> None:
        raise NotImplementedError

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        assert isinstance(output, SlotOutput) and output.slot == slot
        self.kept.add(slot)

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        assert self.kept == set(slots)
        self._choose(slots, lengths, choice)

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        assert slots and all(lengths[slot] < self.max_context for slot in slots)
        self.steps += 1
        for slot in slots:
            assert lengths[slot] == self.cached[slot]
            self.cached[slot] += 1
        self._choose(slots, None, choice)

    def _choose(self, slots: Sequence[int], lengths: Sequence[int] | None, choice: Choice) -> None:
        assert lengths is None or all(lengths[slot] == self.cached[slot] for slot in slots)
        self.choices.add(choice)
        for slot in slots:
            self.latest[slot] = self.scripts[slot][self.drawn[slot]]
            self.drawn[slot] += 1

    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        tokens = [self.latest.get(slot, -1) for slot in range(len(self.scripts))]
        logits = [[float(token)] for token in tokens] if keep_logits else None
        return Pending(tokens, [-0.5 * token for token in tokens], logits)


@dataclass
class Pending(PendingTokens):
    tokens: list[int]
    logprobs: list[float]
    logits: Any

    def wait(self) -> tuple[list[int], list[float], Any]:
        return self.tokens, self.logprobs, self.logits


@dataclass
class Run:
    """A stream of one request, with what it runs on."""

    executor: Scripted
    slots: Slots
    requests: list[Request]
    tokens: Generator[Token, None, list[str]]

    def collect(self) -> list[Generation]:
        return collect(self.requests, self.tokens)


def run(
    overlaps: bool,
    scripts: list[list[int]],
    prompts: list[list[int]],
    count: int,
    max_context: int = 100,
    params: SamplingParams | None = None,
    keep_logits: bool = False,
) -> Run:
    executor, slots = Scripted(scripts, overlaps, max_context), Slots(len(scripts), max_context)
    sampling = params or SamplingParams()
    requests = [Request(prompt, count, sampling, frozenset({STOP}), keep_logits) for prompt in prompts]
    return Run(executor, slots, requests, stream(executor, slots, requests))


# label: scripts, prompts, max_new_tokens, max_context; tokens and finish of each prompt, lengths of the sequences.
# The last token of a sequence is never appended to it.
CASES: dict[str, tuple[list[list[int]], list[list[int]], int, int, list[tuple[list[int], str]], list[int]]] = {
    "all to the end": (
        [[*range(30)], [*range(50, 80)]],
        [[1], [1, 2]],
        6,
        100,
        [([0, 1, 2, 3, 4, 5], "length"), ([50, 51, 52, 53, 54, 55], "length")],
        [6, 7],
    ),
    "one stops": (
        [[1, 2, STOP, 4, 5, 6, 7, 8], [*range(50, 80)]],
        [[1], [1, 2]],
        6,
        100,
        [([1, 2, STOP], "stop"), ([50, 51, 52, 53, 54, 55], "length")],
        [3, 7],
    ),
    "stops at once": ([[STOP, 2, 3]], [[1]], 6, 100, [([STOP], "stop")], [1]),
    "stops with its last token": ([[1, 2, STOP, 4]], [[1]], 3, 100, [([1, 2, STOP], "stop")], [3]),
    "one token": ([[1, 2, 3]], [[1, 2, 3]], 1, 100, [([1], "length")], [3]),
    "a prompt of several chunks": ([[5, 6, 7]], [[1] * 11], 2, 100, [([5, 6], "length")], [12]),
    "contexts end": (
        [[*range(30)], [*range(30)]],
        [[1] * 7, [1] * 9],
        20,
        10,
        [([0, 1, 2, 3], "context"), ([0, 1], "context")],
        [10, 10],
    ),
    "prompt fills the context": ([[1, 2]], [[1] * 10], 5, 10, [([1], "context")], [10]),
}

both_ways = pytest.mark.parametrize("overlaps", [False, True], ids=["waits", "overlaps"])


@both_ways
@pytest.mark.parametrize("label", CASES)
def test_tokens_finish_and_lengths(label: str, overlaps: bool) -> None:
    scripts, prompts, count, context, expected, lengths = CASES[label]
    ran = run(overlaps, scripts, prompts, count, context)
    generations = ran.collect()
    assert [(generation.tokens, generation.finish) for generation in generations] == expected
    assert [ran.slots.length(slot) for slot in range(len(scripts))] == ran.slots.lengths() == lengths
    assert ran.slots.speculated == set()
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.prompt_tokens == prompt and generation.logits == []
        assert generation.logprobs == [-0.5 * token for token in generation.tokens]
        assert generation.ttft_s > 0 and (generation.decode_tok_s is None) == (len(generation.tokens) == 1)
    assert ran.executor.choices == {Choice.MOST_LIKELY}


@both_ways
def test_a_caller_who_stops_leaves_the_sequence_at_the_last_token_but_one(overlaps: bool) -> None:
    ran = run(overlaps, [[*range(30)]], [[1, 2]], 20)
    assert [next(ran.tokens).id for _ in range(3)] == [0, 1, 2]
    ran.tokens.close()
    assert ran.slots.length(0) == 4  # the prompt and two tokens; the third one was never appended
    ran.slots.begin_call()
    assert ran.slots.lengths() == [4] and ran.slots.speculated == set()


@pytest.mark.parametrize(("overlaps", "steps"), [(False, 0), (True, 1)], ids=["waits", "overlaps"])
def test_the_next_step_is_under_way_while_a_token_is_read(overlaps: bool, steps: int) -> None:
    ran = run(overlaps, [[*range(30)]], [[1]], 20)
    next(ran.tokens)
    assert ran.executor.steps == steps


def test_speculated_tokens_are_known_while_the_stream_is_open() -> None:
    ran = run(True, [[*range(30)], [1, STOP, 2]], [[1], [1, 2]], 6)
    next(ran.tokens), next(ran.tokens)
    assert ran.slots.speculated == {0, 1} and ran.slots.length(0) == 1
    next(ran.tokens)
    assert next(ran.tokens).id == STOP and ran.slots.speculated == {0}
    list(ran.tokens)
    assert ran.slots.speculated == set()


@both_ways
def test_another_call_ends_the_stream(overlaps: bool) -> None:
    ran = run(overlaps, [[*range(30)]], [[1, 2]], 20)
    next(ran.tokens)
    next(ran.tokens)
    ran.slots.begin_call()
    assert ran.slots.lengths() == [3]  # the prompt and the first token, whether or not a step was speculated
    with pytest.raises(RunError, match="another call used this runner"):
        next(ran.tokens)


@both_ways
@pytest.mark.parametrize(
    ("params", "choice"),
    [
        (SamplingParams(0.5, seed=3), Choice.DRAWN),
        (SamplingParams(0.5, min_p=0.1), Choice.DRAWN),
        (SamplingParams(0.5, top_k=1), Choice.LIMITED),
        (SamplingParams(0.5, top_p=0.9), Choice.LIMITED),
        (SamplingParams(0, top_k=5), Choice.MOST_LIKELY),
    ],
    ids=str,
)
def test_parameters_reach_the_executor(overlaps: bool, params: SamplingParams, choice: Choice) -> None:
    ran = run(overlaps, [[*range(30)]], [[1, 2]], 3, params=params, keep_logits=True)
    (generation,) = ran.collect()
    assert ran.executor.params == {0: params} and ran.executor.choices == {choice}
    assert generation.logits == [[0.0], [1.0], [2.0]]
