"""Choosing tokens on the device: which logits, position and parameters each choice is made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sampling_definition import chosen_token, logprob

from gptoss_export import SamplingParams
from gptoss_export.runtime.executor import PrefilledChunk
from gptoss_export.runtime.sampler_torch import StepOutput
from gptoss_export.runtime.torch_executor import TorchExecutor

SLOTS, VOCABULARY = 3, 40
CPU = torch.device("cpu")


class FixedLogits(TorchExecutor):
    """Its step's logits depend on nothing. It records the tokens and positions that each step reads."""

    def __init__(self) -> None:
        self.logits = 2 * torch.randn(SLOTS, VOCABULARY, generator=torch.Generator().manual_seed(5))
        self.read: list[tuple[list[int], list[int]]] = []
        sizes = SimpleNamespace(max_batch=SLOTS, prefill_chunks=(16, 64))
        manifest: Any = SimpleNamespace(sizes=sizes, model=SimpleNamespace(vocab_size=VOCABULARY))
        tokens, positions = torch.zeros(SLOTS, dtype=torch.int64), torch.zeros(SLOTS, dtype=torch.int64)

        def decode() -> StepOutput:
            self.read.append((tokens.tolist(), positions.tolist()))
            return StepOutput.of(self.logits)

        super().__init__(manifest, tokens, positions, decode)

    @property
    def kv_cache_bytes(self) -> int:
        return 0

    def _prefill(self, slot: int, start: int, tokens: Sequence[int], every_token: bool) -> Iterator[PrefilledChunk]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(1.0, seed=7), SamplingParams(0.8, 9, 0.9)], ids=str
)
def test_choices(params: SamplingParams) -> None:
    """A prompt of n tokens: the first choice is made at position n - 1, that of its last token; each step's at the
    position of the token that it appends."""
    executor = FixedLogits()
    sampled = params.temperature > 0
    prompt_logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(6))
    executor.set_sampling([params, params])
    for slot in (0, 1):
        executor.keep_output(slot, StepOutput.of(prompt_logits))
    executor.choose_first([0, 1], [5, 30, 0], sampled)
    tokens, logprobs, logits = executor.pending_tokens(keep_logits=True).wait()
    row = prompt_logits[0].tolist()
    first = [chosen_token(row, 4, params), chosen_token(row, 29, params)]
    assert tokens[:2] == first
    assert logprobs[:2] == pytest.approx([logprob(row, token) for token in first], abs=1e-5)
    assert logits is not None and logits[0].tolist() == row

    for lengths in ([5, 30, 0], [6, 31, 0]):
        previous = tokens
        executor.step([0, 1], lengths, sampled)
        tokens, logprobs, _ = executor.pending_tokens(keep_logits=False).wait()
        read_tokens, read_positions = executor.read[-1]
        assert read_tokens[:2] == previous[:2] and read_positions == [*lengths[:2], -1]
        rows = executor.logits.tolist()
        expected = [chosen_token(rows[slot], lengths[slot], params) for slot in (0, 1)]
        assert tokens[:2] == expected
        assert logprobs[:2] == pytest.approx([logprob(rows[slot], expected[slot]) for slot in (0, 1)], abs=1e-5)


def test_a_slot_that_ends_is_idle() -> None:
    executor = FixedLogits()
    executor.set_sampling([SamplingParams()] * SLOTS)
    executor.step([0, 2], [4, 9, 7], False)
    executor.step([0, 2], [5, 9, 8], False)  # in place already: the step advanced the positions itself
    executor.step([2], [6, 9, 9], False)
    executor.step([0, 1], [6, 9, 10], False)
    assert [positions for _, positions in executor.read] == [[4, -1, 7], [5, -1, 8], [-1, -1, 9], [6, 9, -1]]


def test_decode_takes_the_callers_tokens() -> None:
    executor = FixedLogits()
    logits = executor.decode({1: 33}, [4, 9, 7])
    (tokens, positions) = executor.read[-1]
    assert tokens[1] == 33 and positions == [-1, 9, -1]
    assert torch.equal(logits, executor.logits)
    executor.logits.zero_()
    assert logits.any()  # a copy: the next step overwrites the step's own


def test_the_smallest_chunk_that_takes_all_tokens() -> None:
    executor = FixedLogits()
    assert [executor._chunk_for(count) for count in (1, 16, 17, 64, 65, 1000)] == [16, 16, 64, 64, 64, 64]


def test_arrays() -> None:
    executor = FixedLogits()
    assert executor.token_array([3, 1]).tolist() == [3, 1]
    assert executor.to_host([torch.ones(2), torch.zeros(1)]).tolist() == [1, 1, 0]
