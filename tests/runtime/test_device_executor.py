"""Choosing tokens on the device: which logits, position and parameters each choice is made from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from sampling_definition import chosen_token, logprob

from gptoss_export import SamplingParams
from gptoss_export.artifact.programs import Sizes
from gptoss_export.model.choice import Adjusting
from gptoss_export.model.sampling_state import DRAWING, Choice
from gptoss_export.runtime.choosing import Chooser
from gptoss_export.runtime.decode_step import Decoded, DecodeStep, StepRows
from gptoss_export.runtime.device_executor import DeviceExecutor
from gptoss_export.runtime.executor import ChunkOutput, Outputs, Part, Prompt, Sampling
from gptoss_export.runtime.sampling_buffers import SamplingBuffers
from gptoss_export.runtime.with_torch.choices import IN_TORCH, output_of
from gptoss_export.runtime.with_torch.tensors import TorchTensors

SIZES, VOCABULARY = Sizes((1, 3), 128, (16, 64)), 40
SLOTS = SIZES.max_batch
TENSORS = TorchTensors(torch.device("cpu"))


class Read(NamedTuple):
    """What a step read of its rows."""

    tokens: list[int]
    positions: list[int]
    slots: list[int]


class FixedLogits(DeviceExecutor):
    """The logits of a step depend on the slot of each row alone. It records what each step reads."""

    def __init__(self) -> None:
        self.logits = 2 * torch.randn(SLOTS, VOCABULARY, generator=torch.Generator().manual_seed(5))
        self.read: list[Read] = []
        manifest: Any = SimpleNamespace(sizes=SIZES, model=SimpleNamespace(vocab_size=VOCABULARY))
        rows = {width: StepRows.empty(width, TENSORS) for width in SIZES.widths}
        decode = {width: partial(self._decode, rows[width]) for width in rows}
        super().__init__(manifest, TENSORS, rows, decode, IN_TORCH)

    def _decode(self, rows: StepRows) -> Decoded:
        self.read.append(Read(rows.tokens.tolist(), rows.positions.tolist(), rows.slots.tolist()))
        next_positions = rows.positions + (rows.positions >= 0)
        return Decoded(output_of(self.logits[rows.slots]), next_positions, rows.positions)

    @property
    def kv_cache_bytes(self) -> int:
        return 0

    def chunk_of(self, prompt: Prompt) -> Part:
        raise NotImplementedError

    def _prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        raise NotImplementedError


def test_an_adjusted_step_counts_nothing_for_a_row_that_takes_no_part() -> None:
    """Such a row may have a position, where a target writes to every slot."""
    buffers = SamplingBuffers(2, VOCABULARY, TENSORS)
    buffers.set({slot: Sampling(SamplingParams(presence_penalty=1.0)) for slot in range(2)})
    rows = StepRows(torch.zeros(2, dtype=torch.int64), torch.tensor([4, 9]), torch.arange(2))
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(8))

    def decode() -> Decoded:
        return Decoded(output_of(logits), rows.positions + torch.tensor([1, 0]), torch.tensor([4, -1]))

    DecodeStep(decode, rows, Chooser(buffers, IN_TORCH), TENSORS).run(Choice.ADJUSTED)
    counts = Adjusting(*buffers.read_by(Choice.ADJUSTED)[len(DRAWING) :]).counts
    assert counts.sum(dim=1).tolist() == [1, 0] and rows.positions.tolist() == [5, 9]


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(1.0, seed=7), SamplingParams(0.8, 9, 0.9)], ids=str
)
def test_choices(params: SamplingParams) -> None:
    """A prompt of n tokens: the first choice is made at position n - 1, that of its last token; each step's at the
    position of the token that it appends."""
    executor = FixedLogits()
    choice = Choice.LIMITED if params.limits else Choice.DRAWN if params.temperature > 0 else Choice.MOST_LIKELY
    prompt_logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(6))
    executor.set_sampling({0: Sampling(params), 1: Sampling(params)})
    for slot in (0, 1):
        executor.keep_output(slot, output_of(prompt_logits))
    executor.choose_first([0, 1], [5, 30, 0], choice)
    tokens, logprobs, logits = executor.pending_tokens(keep_logits=True).wait()
    row = prompt_logits[0].tolist()
    first = [chosen_token(row, 4, params), chosen_token(row, 29, params)]
    assert tokens == dict(enumerate(first))
    assert logprobs == pytest.approx({slot: logprob(row, token) for slot, token in enumerate(first)}, abs=1e-5)
    assert logits is not None and logits[0].tolist() == row

    for lengths in ([5, 30, 0], [6, 31, 0]):
        previous = tokens
        executor.step([0, 1], lengths, choice)
        tokens, logprobs, _ = executor.pending_tokens(keep_logits=False).wait()
        read = executor.read[-1]
        assert read.tokens[:2] == [previous[0], previous[1]] and read.slots[:2] == [0, 1]
        assert read.positions == [*lengths[:2], -1]
        rows = executor.logits.tolist()
        assert tokens == {slot: chosen_token(rows[slot], lengths[slot], params) for slot in (0, 1)}
        assert logprobs == pytest.approx({slot: logprob(rows[slot], tokens[slot]) for slot in (0, 1)}, abs=1e-5)


def test_a_step_runs_the_smallest_width_with_the_tokens_of_its_slots() -> None:
    """Sequences join, leave and stay: each goes on from its own last token, in whatever row."""
    executor = FixedLogits()
    best = executor.logits.argmax(dim=-1).tolist()  # what every step of a slot chooses
    for slot in range(SLOTS):
        executor.keep_output(slot, output_of(torch.eye(VOCABULARY)[slot + 30][None]))
    executor.choose_first([0, 1, 2], [4, 9, 7], Choice.MOST_LIKELY)
    assert executor.pending_tokens(keep_logits=False).wait()[0] == {0: 30, 1: 31, 2: 32}
    executor.step([0, 2], [4, 9, 7], Choice.MOST_LIKELY)
    executor.step([0, 2], [5, 9, 8], Choice.MOST_LIKELY)  # in place already: the step advanced the positions itself
    executor.step([2], [6, 9, 9], Choice.MOST_LIKELY)
    assert executor.pending_tokens(keep_logits=False).wait()[0] == {2: best[2]}
    executor.step([2], [6, 9, 10], Choice.MOST_LIKELY)
    executor.step([1, 2], [6, 9, 11], Choice.MOST_LIKELY)  # slot 1 has waited with its first token
    executor.step([1], [6, 10, 12], Choice.MOST_LIKELY)
    executor.step([0, 1, 2], [6, 11, 12], Choice.MOST_LIKELY)
    active = [
        [(token, position, slot) for token, position, slot in zip(*read, strict=True) if position >= 0]
        for read in executor.read
    ]
    assert active == [
        [(30, 4, 0), (32, 7, 2)],
        [(best[0], 5, 0), (best[2], 8, 2)],
        [(best[2], 9, 2)],
        [(best[2], 10, 2)],
        [(31, 9, 1), (best[2], 11, 2)],
        [(best[1], 10, 1)],
        [(best[0], 6, 0), (best[1], 11, 1), (best[2], 12, 2)],
    ]
    assert [len(read.tokens) for read in executor.read] == [3, 3, 1, 1, 3, 1, 3]


def test_logits_of_a_step_go_with_their_slots() -> None:
    executor = FixedLogits()
    executor.step([1, 2], [4, 9, 7], Choice.MOST_LIKELY)
    _, _, logits = executor.pending_tokens(keep_logits=True).wait()
    assert logits is not None and {slot: row.tolist() for slot, row in logits.items()} == {
        slot: executor.logits[slot].tolist() for slot in (1, 2)
    }


def test_each_row_is_drawn_with_the_parameters_of_its_slot() -> None:
    executor = FixedLogits()
    params = [SamplingParams(), SamplingParams(2.0, seed=3), SamplingParams(1.5, seed=4)]
    executor.set_sampling(dict(enumerate(map(Sampling, params))))
    rows = executor.logits.tolist()
    for position in range(20):
        executor.step([1, 2], [0, position, position], Choice.DRAWN)
        tokens, _, _ = executor.pending_tokens(keep_logits=False).wait()
        assert tokens == {slot: chosen_token(rows[slot], position, params[slot]) for slot in (1, 2)}
        executor.step([2], [0, 0, 50 + position], Choice.DRAWN)
        tokens, _, _ = executor.pending_tokens(keep_logits=False).wait()
        assert tokens == {2: chosen_token(rows[2], 50 + position, params[2])}


def test_decode_takes_the_callers_tokens() -> None:
    executor = FixedLogits()
    logits = executor.decode({1: 33}, [4, 9, 7])
    assert executor.read[-1] == ([33], [9], [1])
    assert torch.equal(logits[1], executor.logits[1])
    logits = executor.decode({0: 11, 2: 13}, [4, 9, 7])
    assert [row[:2] for row in executor.read[-1]] == [[11, 13], [4, 7], [0, 2]]
    assert torch.equal(logits[[0, 2]], executor.logits[[0, 2]])
    executor.logits.zero_()
    assert logits.any()  # a copy: the next step overwrites the step's own


def test_the_smallest_chunk_that_takes_all_tokens() -> None:
    executor = FixedLogits()
    assert [executor._chunk_for(count) for count in (1, 16, 17, 64, 65, 1000)] == [16, 16, 64, 64, 64, 64]


def test_arrays() -> None:
    executor = FixedLogits()
    assert executor.joined([torch.ones(2), torch.zeros(1)]).tolist() == [1, 1, 0]
