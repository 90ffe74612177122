"""The engine over a compiled artifact of three slots, against the runner alone and against transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import GptOssForCausalLM

from gptoss_export import Engine, Runner, SamplingParams, load
from gptoss_export.verification.metric import TOLERANCES

LENGTHS = (1, 70, 33, 5, 130, 64, 17, 96, 2, 200)  # past the window, one chunk and many


@pytest.fixture
def prompts(sequence: list[int]) -> list[list[int]]:
    return [sequence[3 * index :][:length] for index, length in enumerate(LENGTHS)]


def test_random_arrivals_against_transformers(
    runner: Runner, prompts: list[list[int]], transformer: GptOssForCausalLM
) -> None:
    """Ten greedy requests arrive at random. Each token is the most likely one by transformers, given those before."""
    engine, drawn = Engine(runner), random.Random(5)
    handles = []
    for prompt in prompts:
        handles.append(engine.submit(prompt, 6 + 3 * len(handles), stop_tokens=()))
        for _ in range(drawn.randrange(7)):
            engine.step()
    for index, (prompt, handle) in enumerate(zip(prompts, handles, strict=True)):
        result = handle.result()
        assert len(result.tokens) == 6 + 3 * index and result.finish == "length"
        tokens = torch.tensor([[*prompt, *result.tokens]])
        with torch.no_grad():
            logits = transformer(tokens).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == result.tokens
        logprobs = logits.log_softmax(-1)[range(len(result.tokens)), result.tokens]
        assert result.logprobs == pytest.approx(logprobs.tolist(), abs=2 * TOLERANCES[torch.float32].max)
    engine.close()


def test_few_pages_and_common_beginnings_against_transformers(
    artifact: Path, sequence: list[int], transformer: GptOssForCausalLM
) -> None:
    """Sequences are set back and prompts find what others have computed; some are cancelled on the way."""
    small = load(artifact, kv_memory=11 * 65_536)  # 10 pages: two sequences of 130 tokens fill them
    engine, drawn = Engine(small), random.Random(9)
    beginnings = sequence[:70], [], []
    handles = []
    for index in range(14):
        prompt = [*beginnings[index % 3], *sequence[7 * index :][: 5 + 9 * (index % 4)]]
        handles.append(engine.submit(prompt, 100 + index, stop_tokens=()))
        for _ in range(drawn.randrange(9)):
            engine.step()
        if index in (4, 9):
            handles[-1].cancel()
    for handle in handles:
        result = handle.result()
        if result.finish == "cancelled":
            continue
        tokens = torch.tensor([[*result.prompt_tokens, *result.tokens]])
        with torch.no_grad():
            logits = transformer(tokens).logits[0, len(result.prompt_tokens) - 1 : -1]
        assert logits.argmax(-1).tolist() == result.tokens
    stats = engine.stats()
    assert stats.set_back > 0 and stats.reused_tokens > 0 and stats.held_pages == 0
    engine.close()


def test_drawn_tokens_are_those_of_the_request_alone(runner: Runner, prompts: list[list[int]]) -> None:
    params = [SamplingParams(0.9, top_k=20 * (index % 2), top_p=0.95, seed=index) for index in range(len(prompts))]
    engine = Engine(runner)
    together = engine.generate(prompts, 12, params, stop_tokens=())
    engine.close()
    for prompt, sampling, result in zip(prompts, params, together, strict=True):
        assert runner.generate(prompt, 12, sampling, stop_tokens=()).tokens == result.tokens


def test_at_a_fixed_width_company_changes_no_bit(artifact: Path, prompts: list[list[int]]) -> None:
    """Each request alone, and all of them together: the same log probabilities, bit for bit."""
    runner = load(artifact, fixed_width=True)
    alone = [runner.generate(prompt, 10, stop_tokens=()) for prompt in prompts]
    engine = Engine(runner)
    together = engine.generate(prompts, 10, stop_tokens=())
    engine.close()
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens and one.logprobs == other.logprobs


def test_a_cancelled_request_leaves_its_slot_clean(runner: Runner, prompts: list[list[int]]) -> None:
    engine = Engine(runner)
    cancelled = [engine.submit(prompt, 50, stop_tokens=()) for prompt in prompts[1:4]]
    for handle in cancelled:
        next(handle)
    for handle in cancelled:
        handle.cancel()
    result = engine.submit(prompts[4], 10, stop_tokens=()).result()
    engine.close()
    assert runner.generate(prompts[4], 10, stop_tokens=()).tokens == result.tokens
