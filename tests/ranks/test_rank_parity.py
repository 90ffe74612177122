"""Two and four ranks compute what one computes: Hugging Face's model on the same checkpoint says what that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_artifacts import all_of, expected_logits, transformer_of
from transformers import GptOssForCausalLM

from gptoss_export import Engine, Runner, SamplingParams
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.verification.metric import TOLERANCES, Deviation, deviation
from gptoss_export.verification.oracles import open_oracle

ONE_RANK = Deviation(max=1e-5, rms=2e-6)  # sums of float32 in another order
LENGTHS = (1, 63, 64, 65, 200)  # around a chunk's border, and past the window of 32
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6] * 12


def tokens_of(length: int, vocabulary: int) -> list[int]:
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.fixture(scope="module")
def transformer(of_two: Path) -> GptOssForCausalLM:
    """Hugging Face's model of the checkpoint that two ranks share."""
    return transformer_of(of_two / "checkpoint")


@pytest.mark.parametrize("length", LENGTHS)
def test_two_ranks_against_transformers(two: Runner, transformer: GptOssForCausalLM, length: int) -> None:
    tokens = tokens_of(length, two.manifest.model.vocab_size)
    assert deviation(all_of(two, tokens), expected_logits(transformer, tokens)).within(TOLERANCES[torch.float32])


def test_two_ranks_against_one(two: Runner, of_two: Path) -> None:
    tokens = tokens_of(300, two.manifest.model.vocab_size)
    one = open_oracle("reference", open_checkpoint(of_two / "checkpoint"), torch.float32, torch.device("cpu"))
    expected = one.run(tokens, range(len(tokens))).logits
    found = all_of(two, tokens)
    assert deviation(found, torch.stack([expected[row] for row in range(len(tokens))])).within(ONE_RANK)


def test_past_4096_positions(two: Runner, of_two: Path) -> None:
    tokens = tokens_of(4150, two.manifest.model.vocab_size)
    one = open_oracle("reference", open_checkpoint(of_two / "checkpoint"), torch.float32, torch.device("cpu"))
    rows = [0, 4095, 4096, 4149]
    expected = one.run(tokens, rows).logits
    found = all_of(two, tokens)[rows]
    assert deviation(found, torch.stack([expected[row] for row in rows])).within(ONE_RANK)


def test_generated_tokens_are_the_most_likely_ones(two: Runner, transformer: GptOssForCausalLM) -> None:
    result = two.generate(PROMPT, 60, stop_tokens=(), keep_logits=True)
    expected = expected_logits(transformer, [*PROMPT, *result.tokens])[len(PROMPT) - 1 : -1]
    assert result.tokens == expected.argmax(dim=-1).tolist()
    kept = torch.stack([torch.as_tensor(row) for row in result.logits])
    assert deviation(kept, expected).within(TOLERANCES[torch.float32])
    logprobs = expected.log_softmax(dim=-1).gather(-1, torch.tensor(result.tokens)[:, None]).squeeze(-1)
    assert torch.allclose(torch.tensor(result.logprobs), logprobs, atol=1e-4)


def test_ragged_batches_of_an_engine(two: Runner, transformer: GptOssForCausalLM) -> None:
    prompts = [tokens_of(length, two.manifest.model.vocab_size) for length in (1, 70, 33, 130, 5)]
    with Engine(two) as engine:
        results = engine.generate(prompts, 20, stop_tokens=())
    for prompt, result in zip(prompts, results, strict=True):
        expected = expected_logits(transformer, [*prompt, *result.tokens])[len(prompt) - 1 : -1]
        assert result.tokens == expected.argmax(dim=-1).tolist()


def test_scores(two: Runner, transformer: GptOssForCausalLM) -> None:
    tokens = tokens_of(150, two.manifest.model.vocab_size)
    expected = expected_logits(transformer, tokens)[:-1].log_softmax(dim=-1)
    expected = expected.gather(-1, torch.tensor(tokens[1:])[:, None]).squeeze(-1)
    assert torch.allclose(torch.as_tensor(two.score(tokens)), expected, atol=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.9, seed=5),
        SamplingParams(temperature=1.1, top_k=20, top_p=0.8, seed=6),
        SamplingParams(temperature=0.7, repetition_penalty=1.3, logit_bias={516: 3.0, 2: -4.0}, top_logprobs=3, seed=7),
    ],
    ids=["drawn", "limited", "adjusted"],
)
def test_drawn_tokens_are_those_of_one_rank(two: Runner, params: SamplingParams) -> None:
    """All ranks choose alike: otherwise the next logits would be those of another text."""
    result = two.generate(PROMPT, 12, params, stop_tokens=(), keep_logits=True)
    text = [*PROMPT, *result.tokens]
    again = all_of(two, text)[len(PROMPT) - 1 : -1]
    kept = torch.stack([torch.as_tensor(row) for row in result.logits])
    assert deviation(kept, again).within(ONE_RANK)
    assert two.generate(PROMPT, 12, params, stop_tokens=()).tokens == result.tokens


def test_a_mask_holds_on_all_ranks(two: Runner) -> None:
    vocabulary = two.manifest.model.vocab_size
    allowed = [1, 300, 516]
    bits = sum(1 << token for token in allowed).to_bytes(4 * (-(-vocabulary // 32)), "little")
    with Engine(two) as engine:
        handle = engine.submit(PROMPT, 10, SamplingParams(temperature=1.0, seed=2), (), allowed=lambda tokens: bits)
        assert set(handle.result().tokens) <= set(allowed)


def test_decode_with_tokens_of_the_caller(two: Runner, transformer: GptOssForCausalLM) -> None:
    two.reset()
    two.prefill(PROMPT, slot=1)
    two.prefill(PROMPT[:5], slot=0)
    found = torch.as_tensor(two.decode([7, 8]))
    for slot, text in enumerate(([*PROMPT[:5], 7], [*PROMPT, 8])):
        expected = expected_logits(transformer, text)[-1:]
        assert deviation(found[slot][None], expected).within(TOLERANCES[torch.float32])


def test_forked_sequences(two: Runner, transformer: GptOssForCausalLM) -> None:
    two.reset()
    two.prefill(PROMPT, slot=0)
    two.fork(0, 1)
    two.decode([5, 6])
    found = torch.as_tensor(two.decode([1, 2]))
    for slot, text in enumerate(([*PROMPT, 5, 1], [*PROMPT, 6, 2])):
        assert deviation(found[slot][None], expected_logits(transformer, text)[-1:]).within(TOLERANCES[torch.float32])


def test_weights_are_the_checkpoints_files_once(of_two: Path) -> None:
    stored = list((of_two / "artifact" / "weights").iterdir())
    assert stored and all(path.stat().st_nlink > 1 for path in stored)
