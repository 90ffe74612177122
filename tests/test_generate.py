"""Launching a step before the last one was read, as on a GPU, gives what waiting gives: with a runner of scripted tokens."""

from types import SimpleNamespace

import pytest

from gptoss_export.runtime.generation import collect, stream

STOP = 99


class Scripted:
    """Stands for a Runner: slot s draws the s-th script's tokens in order. Counts what it is asked to compute."""

    def __init__(self, device: str, scripts: list[list[int]], max_context: int = 100) -> None:
        self._overlaps = device == "cuda"
        self.manifest = SimpleNamespace(max_context=max_context)
        self.scripts, self.drawn = scripts, [0] * len(scripts)
        self.lengths = [0] * len(scripts)
        self.steps, self._claims = 0, 1
        self._ahead = set()

    def _begin(self, sampling):
        return self._claims

    def _check_claim(self, claim):
        assert claim == self._claims

    def _start(self, slot, prompt):
        self.lengths[slot] = len(prompt)

    def _choose(self, slots, sampled):
        self.latest = {slot: self._draw(slot) for slot in slots}

    def _next(self, slots, sampled):
        for slot in slots:
            assert self.lengths[slot] < self.manifest.max_context
            self.lengths[slot] += 1
        self.steps += 1
        self._choose(slots, sampled)

    def _draw(self, slot):
        self.drawn[slot] += 1
        return self.scripts[slot][self.drawn[slot] - 1]

    def _reading(self, keep_logits):
        tokens = [self.latest.get(slot, -1) for slot in range(len(self.scripts))]
        return SimpleNamespace(wait=lambda: (tokens, [0.0] * len(tokens), None))

    def _take_back(self, slots):
        for slot in slots:
            self.lengths[slot] -= 1
        self._ahead = self._ahead - set(slots)

    def length(self, slot=0):
        return self.lengths[slot]


def run(device, scripts, prompts, count, max_context=100):
    runner = Scripted(device, scripts, max_context)
    options = [SimpleNamespace(temperature=0.0) for _ in prompts]
    tokens = stream(runner, prompts, count, options, frozenset({STOP}), False)
    return runner, tokens


CASES = {
    "all to the end": ([[*range(30)], [*range(50, 80)]], [[1], [1, 2]], 6, 100),
    "one stops": ([[1, 2, STOP, 4, 5, 6, 7, 8], [*range(50, 80)]], [[1], [1, 2]], 6, 100),
    "stops at once": ([[STOP, 2, 3]], [[1]], 6, 100),
    "stops with its last token": ([[1, 2, STOP, 4]], [[1]], 3, 100),
    "one token": ([[1, 2, 3]], [[1, 2, 3]], 1, 100),
    "contexts end": ([[*range(30)], [*range(30)]], [[1] * 7, [1] * 9], 20, 10),
    "prompt fills the context": ([[1, 2]], [[1] * 10], 5, 10),
}


@pytest.mark.parametrize("label", CASES)
def test_ahead_is_the_same_as_waiting(label):
    scripts, prompts, count, context = CASES[label]
    results = []
    for device in "cpu", "cuda":
        runner, tokens = run(device, scripts, prompts, count, context)
        generations = collect(prompts, tokens, frozenset({STOP}), count)
        results.append(([(g.tokens, g.finish) for g in generations], runner.lengths))
    assert results[0] == results[1]


def test_a_caller_who_stops_leaves_the_sequence_at_the_last_token_but_one():
    for device in "cpu", "cuda":
        runner, tokens = run(device, [[*range(30)]], [[1, 2]], 20)
        seen = [next(tokens).id for _ in range(3)]
        tokens.close()
        assert seen == [0, 1, 2]
        assert runner.lengths == [4]  # the prompt and two tokens; the third was never fed back


def test_the_next_step_is_under_way_while_a_token_is_read():
    runner, tokens = run("cuda", [[*range(30)]], [[1]], 20)
    next(tokens)
    assert runner.steps == 1
    runner, tokens = run("cpu", [[*range(30)]], [[1]], 20)
    next(tokens)
    assert runner.steps == 0


def test_what_ran_ahead_is_known_while_the_stream_is_open():
    runner, tokens = run("cuda", [[*range(30)], [1, STOP, 2]], [[1], [1, 2]], 6)
    next(tokens), next(tokens)
    assert runner._ahead == {0, 1}
    next(tokens)
    assert next(tokens).id == STOP and runner._ahead == {0}
    list(tokens)
    assert runner._ahead == set()
