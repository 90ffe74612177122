"""Penalties, bias, allowed tokens and the first possible stop, with and without torch, against transformers' processors
and OpenAI's formula."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import SequenceBiasLogitsProcessor

from gptoss_export import SamplingParams
from gptoss_export.errors import RunError
from gptoss_export.model.choice import Adjusting, Drawing, adjust, count
from gptoss_export.model.sampling_state import DRAWING, Choice, adjusting
from gptoss_export.runtime.adjust_numpy import Adjustment
from gptoss_export.runtime.checked_request import checked_mask
from gptoss_export.runtime.executor import Sampling
from gptoss_export.runtime.sampling_buffers import SamplingBuffers
from gptoss_export.runtime.with_torch.tensors import TorchTensors

VOCABULARY, STOPS = 77, (3, 40, 76)
CASES = {
    "repetition": SamplingParams(repetition_penalty=1.7),
    "less than one": SamplingParams(repetition_penalty=0.6),
    "presence": SamplingParams(presence_penalty=0.9),
    "frequency": SamplingParams(frequency_penalty=-0.4),
    "bias": SamplingParams(logit_bias={0: 3.5, 76: -100, 12: 0.25}),
    "first stop": SamplingParams(min_new_tokens=4),
    "all": SamplingParams(
        repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2, logit_bias={5: 2.0, 3: 9}, min_new_tokens=2
    ),
}


def test_functions_take_the_state_by_its_names() -> None:
    assert [kind.name for kind in DRAWING] == list(Drawing._fields)
    assert [kind.name for kind in adjusting(VOCABULARY)] == list(Adjusting._fields)


class Buffers(SamplingBuffers):
    """The buffers of a few slots on the CPU."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots, VOCABULARY, TorchTensors(torch.device("cpu")))

    @property
    def adjusting(self) -> Adjusting:
        return Adjusting(*self.read_by(Choice.ADJUSTED)[len(DRAWING) :])

    def apply(self, logits: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return adjust(logits, positions, slots, self.adjusting)

    def count(self, tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> None:
        count(tokens, positions, slots, self.adjusting.counts)


def mask_of(tokens: set[int]) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(4 * -(-VOCABULARY // 32), "little")


def expected(logits: list[float], prompt: list[int], answer: list[int], params: SamplingParams) -> torch.Tensor:
    """In the order that SamplingParams says."""
    ids, found = torch.tensor([[*prompt, *answer]]), torch.tensor([logits])
    if params.repetition_penalty != 1:
        found = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, found)
    counts = torch.bincount(torch.tensor(answer, dtype=torch.int64), minlength=VOCABULARY)
    found = found - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    if params.logit_bias:
        biases = {(token,): bias for token, bias in params.logit_bias.items()}
        found = SequenceBiasLogitsProcessor({key: float(bias) for key, bias in biases.items()})(ids, found)
    if params.min_new_tokens:
        found = MinNewTokensLengthLogitsProcessor(len(prompt), params.min_new_tokens, list(STOPS), "cpu")(ids, found)
    return found[0]


@pytest.mark.parametrize("set_back", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, set_back: bool) -> None:
    """Token by token; a sequence that was set back begins with the tokens that it had."""
    drawn, params = random.Random(case), CASES[case]
    prompt, answer = [drawn.randrange(20) for _ in range(12)], [drawn.randrange(30) for _ in range(3 * set_back)]
    given = Sampling(params, prompt, tuple(answer), frozenset(STOPS))
    on_host, on_device = Adjustment(given, VOCABULARY), Buffers(4)
    on_device.set({2: given})
    for _ in range(8):
        logits = [drawn.gauss(0, 3) for _ in range(VOCABULARY)]
        position = len(prompt) + len(answer) - 1
        wanted = expected(logits, prompt, answer, params)
        rows = torch.tensor([[0.0] * VOCABULARY, logits])
        positions, slots = torch.tensor([-1, position]), torch.tensor([0, 2])
        torch.testing.assert_close(on_device.apply(rows, positions, slots)[1], wanted, rtol=1e-5, atol=1e-5)
        found = on_host.apply(np.array(logits, np.float32), position)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)
        answer.append(drawn.randrange(30))
        on_device.count(torch.tensor([5, answer[-1]]), positions, slots)
        on_host.count(answer[-1])


def test_a_row_without_a_sequence_counts_nothing() -> None:
    given = Sampling(SamplingParams(frequency_penalty=1.0), [1])
    adjustments = Buffers(2)
    adjustments.set({0: given})
    logits, slots = torch.zeros(1, VOCABULARY), torch.tensor([0])
    adjustments.count(torch.tensor([9]), torch.tensor([-1]), slots)
    assert not adjustments.apply(logits, torch.tensor([0]), slots).any()
    adjustments.count(torch.tensor([9]), torch.tensor([0]), slots)
    assert adjustments.apply(logits, torch.tensor([1]), slots)[0, 9] == -1.0


def test_a_slot_forgets_the_sequence_before() -> None:
    adjustments = Buffers(1)
    adjustments.set({0: Sampling(CASES["all"], [1, 2], (3, 4), frozenset(STOPS))})
    adjustments.allow({0: mask_of({5})})
    adjustments.set({0: Sampling(SamplingParams())})
    logits = torch.randn(1, VOCABULARY)
    assert torch.equal(adjustments.apply(logits, torch.tensor([0]), torch.tensor([0])), logits)


@pytest.mark.parametrize("allowed", [{0}, {31, 32}, {63, 64, 76}, set(range(VOCABULARY)), {3, 40}])
def test_allowed_tokens(allowed: set[int]) -> None:
    """Where only stop tokens are allowed they come before min_new_tokens: the mask wins."""
    given = Sampling(SamplingParams(min_new_tokens=5), [1, 2], (), frozenset(STOPS))
    on_host, on_device = Adjustment(given, VOCABULARY), Buffers(1)
    on_device.set({0: given})
    on_device.allow({0: mask_of(allowed)})
    on_host.allow(mask_of(allowed))
    found = on_device.apply(torch.zeros(1, VOCABULARY), torch.tensor([1]), torch.tensor([0]))[0]
    wanted = allowed - set(STOPS) or allowed
    assert set(torch.isfinite(found).nonzero().flatten().tolist()) == wanted
    assert set(np.isfinite(on_host.apply(np.zeros(VOCABULARY, np.float32), 1)).nonzero()[0].tolist()) == wanted


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (b"\xff" * 8, "a mask of 8 bytes, expected 12"),
        (b"\0" * 12, "a mask without a token"),
        (b"\0" * 9 + b"\0\xe0\0", "a mask without a token"),  # bits behind the vocabulary
    ],
)
def test_masks_that_allow_nothing(mask: bytes, message: str) -> None:
    checked = checked_mask(lambda tokens: mask, VOCABULARY)
    assert checked is not None
    with pytest.raises(RunError, match=message):
        checked([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty: found 0, expected a number of 0.01 to 100"),
        ({"presence_penalty": float("nan")}, "presence_penalty: found nan"),
        ({"frequency_penalty": "1"}, "frequency_penalty: found '1'"),
        ({"logit_bias": {-1: 2.0}}, "logit_bias: found"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias: found"),
        ({"logit_bias": [1]}, "logit_bias: found"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "1024 at most"),
        ({"min_new_tokens": -1}, "min_new_tokens: found -1"),
        ({"top_logprobs": 21}, "top_logprobs: found 21, expected an integer of 0"),
    ],
)
def test_values_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        SamplingParams(**values)  # type: ignore[arg-type]


def test_biases_of_json_have_text_as_keys() -> None:
    assert SamplingParams(logit_bias={"12": 1}).logit_bias == {12: 1.0}  # type: ignore[dict-item]
