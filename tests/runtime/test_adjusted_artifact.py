"""Adjusted choices of a compiled artifact, alone and beside others, against `generate` of transformers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import GptOssForCausalLM

from gptoss_export import Engine, Runner, SamplingParams
from gptoss_export.errors import RunError

STOP = 511
# label: our parameters, and those of transformers.
CASES = {
    "repetition": (SamplingParams(repetition_penalty=1.3), {"repetition_penalty": 1.3}),
    "bias": (SamplingParams(logit_bias={7: 4.0, 9: 4.0}), {"sequence_bias": {(7,): 4.0, (9,): 4.0}}),
    "first stop": (
        SamplingParams(min_new_tokens=9, logit_bias={STOP: 30.0}),
        {"min_new_tokens": 9, "sequence_bias": {(STOP,): 30.0}},
    ),
}


def tokens_of_transformers(model: GptOssForCausalLM, prompt: list[int], **options: object) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
            **options,
        )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_greedy_answers(runner: Runner, sequence: list[int], transformer: GptOssForCausalLM, case: str) -> None:
    params, options = CASES[case]
    prompt = sequence[:45]
    expected = tokens_of_transformers(transformer, prompt, **options)
    assert runner.generate(prompt, 20, params, stop_tokens=[STOP]).tokens == expected
    engine = Engine(runner)
    others = [engine.submit(sequence[at : at + 30], 25, SamplingParams(0.9, seed=at)) for at in range(4)]
    assert engine.submit(prompt, 20, params, stop_tokens=[STOP]).result().tokens == expected
    assert all(other.result().tokens for other in others)
    engine.close()
    assert runner.generate(prompt, 20, stop_tokens=[STOP]).tokens != expected  # the parameters matter


def test_top_logprobs(runner: Runner, sequence: list[int], transformer: GptOssForCausalLM) -> None:
    prompt = sequence[:45]
    result = runner.generate(prompt, 5, SamplingParams(top_logprobs=3), stop_tokens=())
    with torch.no_grad():
        logits = transformer(torch.tensor([[*prompt, *result.tokens]])).logits[0, len(prompt) - 1 : -1]
    best, ids = logits.log_softmax(-1).topk(3)
    assert [[token for token, _ in top] for top in result.top_logprobs] == ids.tolist()
    found = torch.tensor([[value for _, value in top] for top in result.top_logprobs])
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)
    assert result.logprobs == pytest.approx([top[0][1] for top in result.top_logprobs])


def test_allowed_tokens_of_each_step(runner: Runner, sequence: list[int], transformer: GptOssForCausalLM) -> None:
    """Token n of the answer has to be n modulo 5; a neighbour is free."""
    prompt, seen = sequence[:45], []

    def allowed(tokens: Sequence[int]) -> bytes:
        seen.append((tokens, tuple(tokens)))
        bits = sum(1 << token for token in range(512) if token % 5 == len(tokens) % 5)
        return bits.to_bytes(64, "little")

    engine = Engine(runner)
    free = engine.submit(prompt, 8, stop_tokens=())
    result = engine.submit(prompt, 8, stop_tokens=(), allowed=allowed).result()
    assert free.result().tokens == runner_alone(engine, prompt)
    engine.close()
    assert [found for _, found in seen] == [tuple(result.tokens[:count]) for count in range(8)]
    assert len({id(tokens) for tokens, _ in seen}) == 1  # the same object, which grows
    with torch.no_grad():
        logits = transformer(torch.tensor([[*prompt, *result.tokens]])).logits[0, len(prompt) - 1 : -1]
    for at, row in enumerate(logits):
        assert result.tokens[at] == at % 5 + 5 * int(row[at % 5 :: 5].argmax())


def runner_alone(engine: Engine, prompt: list[int]) -> list[int]:
    return engine.submit(prompt, 8, stop_tokens=()).result().tokens


def test_a_mask_that_fails_ends_its_request_alone(runner: Runner, sequence: list[int]) -> None:
    engine = Engine(runner)
    fine = engine.submit(sequence[:20], 10, stop_tokens=())
    fails = engine.submit(sequence[:10], 10, allowed=lambda tokens: b"")
    breaks = engine.submit(sequence[:10], 10, ends=lambda tokens: 1 // (3 - len(tokens)) > 5)
    with pytest.raises(RunError, match="a mask of 0 bytes, expected 64"):
        fails.result()
    with pytest.raises(ZeroDivisionError):
        breaks.result()
    assert len(fine.result().tokens) == 10
    engine.close()


def test_an_answer_ends_where_the_caller_says(runner: Runner, sequence: list[int]) -> None:
    result = runner.generate(sequence[:20], 30, stop_tokens=(), ends=lambda tokens: len(tokens) == 4)
    assert len(result.tokens) == 4 and result.finish == "stop"


def test_a_bias_of_a_token_that_the_model_does_not_have(runner: Runner) -> None:
    with pytest.raises(RunError, match="logit_bias of token 512, expected ids of 0 to 511"):
        runner.generate([1], 1, SamplingParams(logit_bias={512: 1.0}))
