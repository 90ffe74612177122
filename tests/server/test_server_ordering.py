"""What a request's answers cost before the engine has them: each prompt is made, checked and shown once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import MODEL, SETTINGS, Live, served
from scripted_engine import ScriptedEngine, harmony_tokenizer

from gptoss_export.runtime.checked_tokens import CheckedTokens
from gptoss_export.runtime.sampling_params import SamplingParams
from gptoss_export.server import chat, completions
from gptoss_export.server.errors import ApiError
from gptoss_export.server.generating import Order
from gptoss_export.server.served_model import ServedModel
from gptoss_export.server.token_bytes import TokenBytes
from gptoss_export.text.tokenizer import Text

LONG = 12 * 4000  # bytes of 4000 tokens of "<filler 350>", the longest text of a token


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return served(ScriptedEngine())


def continued(model: ServedModel, prompt: Any, **fields: Any) -> tuple[list[Order], list[str]]:
    """The orders of a completion, and what each answer begins with."""
    body = {"model": MODEL, "prompt": prompt, **fields}
    _, orders, beginnings = completions.read_request(model, SETTINGS, json.dumps(body).encode())
    return orders, beginnings


def talked(model: ServedModel, *messages: Any, **fields: Any) -> list[Order]:
    """The orders of a chat completion."""
    body = {"model": MODEL, "messages": list(messages), **fields}
    return chat.read_request(model, SETTINGS, json.dumps(body).encode())[1]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_answers_share_a_prompt(model: ServedModel) -> None:
    for orders in (talked(model, user("Hi"), n=3), continued(model, "Hi", n=3)[0], continued(model, [1, 2], n=3)[0]):
        assert len(orders) == 3 and len({id(order.prompt) for order in orders}) == 1
        assert isinstance(orders[0].prompt, CheckedTokens)


def test_the_engine_gets_what_is_shared(live: Live) -> None:
    assert len(live.chat(n=3).json()["choices"]) == 3
    prompts = live.engine.prompts
    assert len(prompts) == 3 and isinstance(prompts[0], CheckedTokens)
    assert len({id(prompt) for prompt in prompts}) == 1


def test_parameters_are_made_once(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("gptoss_export.server.ordering.sampling_params", lambda *given: made.append(given) or PARAMS)
    params = [order.sampling for order in talked(model, user("Hi"), n=4, seed=2**63 - 2)]
    assert len(made) == 1
    assert [param.seed for param in params] == [0, 2**63 - 1, -(2**63), -(2**63) + 1]
    assert {param.temperature for param in params} == {0.5}


PARAMS = SamplingParams(temperature=0.5)


def test_a_repeated_prompt_is_decoded_once(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []
    decode = Text.decode
    monkeypatch.setattr(Text, "decode", lambda text, tokens: decoded.append(tokens) or decode(text, tokens))
    _, beginnings = continued(model, ["ab", "c"], n=3, echo=True)
    assert beginnings == ["ab"] * 3 + ["c"] * 3 and len(decoded) == 2


def no_tokens(text: Text, given: str) -> list[int]:
    raise AssertionError("the text was made into tokens")


def test_too_many_answers_are_refused_first(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "encode", no_tokens)
    with pytest.raises(ApiError, match="prompt: found 600 answers in one request, expected 512 at most"):
        continued(model, ["a"] * 100, n=6)
    settings = SETTINGS.__class__(max_requests=3)
    body = {"model": MODEL, "messages": [user("Hi")], "n": 4}
    with pytest.raises(ApiError, match="n: found 4 answers in one request, expected 3 at most"):
        chat.read_request(model, settings, json.dumps(body).encode())


def test_a_text_that_cannot_fit_makes_no_tokens(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its tokens are: none is longer than the longest."""
    assert len(talked(model, user("<filler 350>" * 3700))[0].prompt) < 4000
    monkeypatch.setattr(Text, "encode", no_tokens)
    with pytest.raises(ApiError, match="prompt: found 48000 bytes, which are 4000 tokens or more, expected fewer"):
        continued(model, "ö" * (LONG // 2))
    for messages in ([user("x" * LONG)], [user("x" * (LONG // 2))] * 2, [{"role": "system", "content": "x" * LONG}]):
        with pytest.raises(ApiError, match="messages: found 48000 bytes") as raised:
            talked(model, *messages)
        assert raised.value.code == "context_length_exceeded" and raised.value.param == "messages"


def test_reasoning_that_is_left_out_does_not_count(model: ServedModel) -> None:
    earlier = {"role": "assistant", "content": "No.", "reasoning": "x" * LONG}
    assert len(talked(model, user("a"), earlier, user("b"))[0].prompt) < 1000


def test_the_longest_token() -> None:
    tokenizer = harmony_tokenizer()
    tokens = TokenBytes(tokenizer)
    assert tokens.longest == 12 == max(len(tokens.of(token)) for token in range(500))
