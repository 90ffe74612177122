"""Completions of plain text as OpenAI's Python client sees them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from live_server import MODEL, Live
from openai import BadRequestError, OpenAI
from openai.types import Completion

from gptoss_export.runtime.generation import Token
from gptoss_export.server.completion_logprobs import CompletionLogprobs
from gptoss_export.server.token_bytes import TokenBytes


def ask(client: OpenAI, prompt: Any = "Once", **fields: Any) -> Completion:
    result = client.completions.create(model=MODEL, prompt=prompt, **fields)
    assert isinstance(result, Completion)
    return result


@pytest.fixture(autouse=True)
def continues(live: Live) -> None:
    """The model writes its prompt backwards, then a stop token."""
    live.engine.script = lambda prompt: prompt[::-1] + "<|return|>"


def test_a_completion(live: Live, client: OpenAI) -> None:
    completion = ask(client, "Once wörd 🙂")
    assert [(choice.text, choice.finish_reason) for choice in completion.choices] == [("🙂 dröw ecnO", "stop")]
    assert live.engine.requests[0].prompt == live.engine.tokenizer.encode("Once wörd 🙂")
    assert completion.id.startswith("cmpl-") and completion.object == "text_completion"
    usage = completion.usage
    assert usage is not None and usage.prompt_tokens == len(live.engine.requests[0].prompt)
    assert usage.completion_tokens == len(live.engine.tokenizer.encode("🙂 dröw ecnO")) + 1
    assert live.engine.requests[0].max_new_tokens == 16


def test_many_prompts_and_answers(live: Live, client: OpenAI) -> None:
    texts = [choice.text for choice in ask(client, ["abc", "de"], n=2).choices]
    assert texts == ["cba", "cba", "ed", "ed"]
    ids = [live.engine.tokenizer.encode(text) for text in ("abc", "de")]
    usage = ask(client, ids).usage
    assert [choice.text for choice in ask(client, ids).choices] == ["cba", "ed"]
    assert usage is not None and usage.prompt_tokens == sum(map(len, ids))
    assert [choice.text for choice in ask(client, ids[0]).choices] == ["cba"]
    live.engine.requests.clear()
    live.engine.reused = {0: 2, 1: 1, 2: 1, 3: 1}
    usage = ask(client, ids, n=2).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1 + 1


def test_a_stream(live: Live, client: OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL, prompt=["Once", "Twice"], stream=True, stream_options={"include_usage": True}
        )
    )
    for index, text in enumerate(("ecnO", "eciwT")):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in choices) == text and choices[-1].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None


def test_echo_stop_and_length(live: Live, client: OpenAI) -> None:
    assert ask(client, "Once", echo=True).choices[0].text == "OnceecnO"
    streamed = client.completions.create(model=MODEL, prompt="Once", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "OnceecnO"
    stopped = ask(client, "abcdef", stop=["cb", "zz"]).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("fed", "stop")
    cut = ask(client, "abcdef", max_tokens=2).choices[0]
    assert (cut.text, cut.finish_reason) == ("fe", "length")


def test_logprobs(live: Live, client: OpenAI) -> None:
    logprobs = ask(client, "abö", logprobs=2).choices[0].logprobs
    assert logprobs is not None and logprobs.tokens == [r"bytes:\xc3", r"bytes:\xb6", "b", "a"]
    assert logprobs.token_logprobs == [-0.5] * 4 and logprobs.text_offset == [0, 0, 1, 2]
    assert logprobs.top_logprobs is not None and logprobs.top_logprobs[2] == {"b": -0.5, "c": -1.5}
    assert logprobs.top_logprobs[0] == {r"bytes:\xc3": -0.5, r"bytes:\xc4": -1.5}
    chunks = client.completions.create(model=MODEL, prompt="abc", logprobs=0, stream=True)
    streamed = [token for chunk in chunks for token in (chunk.choices[0].logprobs or logprobs).tokens or ()]
    assert [token for token in streamed if token in "abc"][:3] == ["c", "b", "a"]
    chosen = ask(client, "ab", logprobs=0).choices[0].logprobs
    assert chosen is not None and chosen.top_logprobs == [{"b": -0.5}, {"a": -0.5}]


def test_logprobs_of_an_unlikely_token(live: Live) -> None:
    """It is listed beside the most likely ones. Offsets count the characters of a text, also where it is no UTF-8."""
    tokenizer = live.engine.tokenizer
    ids = [tokenizer.tokenizer.token_to_id(name) for name in ("ð", "Ł", "Ļ", "Ĥ", "Ã", "he", "Ġwo")]  # 🙂, half an ö
    chosen = [Token(0, token, -7.0, None, [(ids[5], -0.5), (ids[6], -math.inf), (1, -9.0)]) for token in ids]
    lists = CompletionLogprobs(TokenBytes(tokenizer), 2).lists(chosen)
    assert lists["tokens"] == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x99", r"bytes:\x82", r"bytes:\xc3", "he", " wo"]
    assert lists["text_offset"] == [0, 0, 0, 0, 1, 2, 4]
    assert lists["top_logprobs"][0] == {"he": -0.5, " wo": -9999.0, r"bytes:\xf0": -7.0}
    assert lists["top_logprobs"][5] == {"he": -0.5, " wo": -9999.0}


def test_a_prompt_makes_no_control_token(live: Live, client: OpenAI) -> None:
    live.engine.script = lambda prompt: "x<|return|>"
    ask(client, "a<|end|>b")
    assert live.engine.tokenizer.end not in live.engine.requests[0].prompt


@pytest.mark.parametrize(
    ("prompt", "fields", "named"),
    [
        ("", {}, "prompt: found no text"),
        ([], {}, "prompt: found .*, expected a text, a list of token ids"),
        ([600], {}, "prompt: found token 600, expected ids of 0 to 599"),
        ([1, "a"], {}, r"prompt\[1\]: found 'a', expected a whole number"),
        (["a", ""], {}, r"prompt\[1\]: found no text"),
        ("a", {"suffix": "b"}, "suffix: found 'b'.*what follows alone"),
        ("a", {"best_of": 2}, "best_of"),
        ("a", {"echo": True, "logprobs": 1}, "echo: found with logprobs"),
        ("a" * 4000, {}, "prompt: found 4000 tokens, expected fewer than 4000"),
        ("a" * 60_000, {}, "prompt: found 60000 bytes, which are 5000 tokens or more, expected fewer than 4000"),
        (["a"] * 100, {"n": 6}, "prompt: found 600 answers in one request, expected 512 at most"),
    ],
)
def test_what_cannot_be_completed_is_named(live: Live, client: OpenAI, prompt: Any, fields: Any, named: str) -> None:
    with pytest.raises(BadRequestError, match=named):
        ask(client, prompt, **fields)
