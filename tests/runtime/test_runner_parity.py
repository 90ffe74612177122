"""The runner against transformers on the same checkpoint: lengths, pieces, batches, idle slots, generation."""

from __future__ import annotations

import pytest
import torch
from transformers import GptOssForCausalLM

from gptoss_export import Runner
from gptoss_export.verification.metric import TOLERANCES, deviation

FLOAT32 = TOLERANCES[torch.float32]
WINDOW, CHUNK = 32, 64
RING = WINDOW + CHUNK


@pytest.fixture(scope="module")
def expected(transformer: GptOssForCausalLM, sequence: list[int]) -> torch.Tensor:
    """transformers' logits after every token of the sequence."""
    with torch.no_grad():
        return transformer(torch.tensor([sequence])).logits[0]


@pytest.mark.parametrize(
    "length", [1, 2, 15, 16, 17, WINDOW - 1, WINDOW, WINDOW + 1, CHUNK, CHUNK + 1, RING, RING + 1, 2 * RING, 300]
)
def test_prefill_then_decode(runner: Runner, sequence: list[int], expected: torch.Tensor, length: int) -> None:
    assert deviation(runner.prefill(sequence[:length]), expected[length - 1]).within(FLOAT32)
    for row in range(length, length + 3):
        logits = runner.decode([sequence[row], None, None])
        assert deviation(logits[0], expected[row]).within(FLOAT32)
    assert runner.length() == length + 3


def test_prefill_in_pieces_of_any_size(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    done = 0
    for size in (1, 5, 64, 16, 130, 7, 2):
        logits = runner.prefill(sequence[done : done + size])
        done += size
        assert deviation(logits, expected[done - 1]).within(FLOAT32)


def test_logits_after_every_prompt_token(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    assert deviation(torch.cat(list(runner.prefill_logits(sequence[:333]))), expected[:333]).within(FLOAT32)


def test_a_position_past_yarns_original_context(runner: Runner, transformer: GptOssForCausalLM) -> None:
    tokens = torch.randint(0, 512, (4110,), generator=torch.Generator().manual_seed(5)).tolist()
    with torch.no_grad():
        hidden = transformer.model(torch.tensor([tokens])).last_hidden_state[0, 4090:]
        expected = transformer.lm_head(hidden)
    logits = [runner.prefill(tokens[:4091])]
    logits += [runner.decode([token, None, None])[0] for token in tokens[4091:]]
    assert deviation(torch.stack(logits), expected).within(FLOAT32)


def test_greedy_equals_transformers_for_200_tokens(
    runner: Runner, transformer: GptOssForCausalLM, sequence: list[int]
) -> None:
    with torch.no_grad():
        expected = transformer.generate(
            torch.tensor([sequence[:50]]), max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    result = runner.generate(sequence[:50], 200, stop_tokens=())
    assert result.tokens == expected[0, 50:].tolist()
    assert result.finish == "length" and len(result.logprobs) == 200


def test_unequal_prompts_in_one_batch(runner: Runner, sequence: list[int]) -> None:
    prompts = [sequence[:1], sequence[100:310], sequence[40:77]]
    together = runner.generate_batch(prompts, 40, stop_tokens=())
    for prompt, result in zip(prompts, together, strict=True):
        alone = runner.generate(prompt, 40, stop_tokens=())
        assert result.tokens == alone.tokens
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_idle_slots_keep_their_sequence(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    for slot in range(3):
        runner.prefill(sequence[: 100 + slot], slot)
    for row in range(101, 111):
        runner.decode([None, sequence[row], None])
    assert [runner.length(slot) for slot in range(3)] == [100, 111, 102]
    assert deviation(runner.decode([sequence[100], None, None])[0], expected[100]).within(FLOAT32)
    assert deviation(runner.prefill(sequence[102:140], 2), expected[139]).within(FLOAT32)


def test_a_step_that_was_speculated_is_rolled_back(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    """On a GPU a stream launches the next step before its token is read. Here a runner that does so on a CPU is left
    with an unfinished stream."""
    tokens = runner.generate(sequence[:20], 2, stop_tokens=()).tokens
    runner.reset()
    runner.executor.overlaps_steps = True
    try:
        stream = runner.stream(sequence[:20], 20, stop_tokens=())
        assert [next(stream).id, next(stream).id] == tokens
    finally:
        runner.executor.overlaps_steps = False
    assert runner.length() == 21  # the prompt and the first token; the step of the second one is speculated
    runner.truncate(20)
    assert deviation(runner.decode([sequence[20], None, None])[0], expected[20]).within(FLOAT32)
    assert runner.length() == 21


def test_truncate_and_go_on(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    runner.prefill(sequence[:250])
    for _ in range(2):
        runner.truncate(250 - CHUNK)
        assert deviation(runner.prefill(sequence[186:250]), expected[249]).within(FLOAT32)
    runner.truncate(0)
    assert deviation(runner.prefill(sequence[:20]), expected[19]).within(FLOAT32)


def test_truncate_to_the_oldest_position_that_is_held(
    runner: Runner, sequence: list[int], expected: torch.Tensor
) -> None:
    """The shortest length that `truncate` allows still gives the right logits (tests/runtime/test_slots.py)."""
    runner.prefill(sequence[:250])
    runner.truncate(185)
    assert deviation(runner.decode([sequence[185], None, None])[0], expected[185]).within(FLOAT32)


def test_truncate_within_the_ring_reaches_anywhere(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    runner.prefill(sequence[:RING])
    runner.truncate(3)
    assert deviation(runner.prefill(sequence[3:40]), expected[39]).within(FLOAT32)


def test_logprobs_and_logits(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    result = runner.generate(sequence[:60], 5, stop_tokens=(), keep_logits=True)
    assert deviation(result.logits[0], expected[59]).within(FLOAT32)
    for token, value, logits in zip(result.tokens, result.logprobs, result.logits, strict=True):
        assert value == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-5)


def test_score(runner: Runner, sequence: list[int], expected: torch.Tensor) -> None:
    got = runner.score(sequence[:150])
    want = expected[:149].log_softmax(-1)[torch.arange(149), torch.tensor(sequence[1:150])]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert runner.length() == 150
