"""/v1/completions: prompts are continued as they are, without the chat format."""

from __future__ import annotations

import time
import uuid
from typing import cast

from ..errors import UsageError
from ..runtime.checked_tokens import CheckedTokens
from .completion_facts import CompletionFacts
from .completion_sinks import CompletionChunks, WholeCompletion
from .errors import invalid
from .fields import check_stream_options, listed_stops
from .generating import Order
from .ordering import Sampling, check_answer_count, plain_orders
from .readers import PlainReader
from .requests_completions import CompletionRequest, Prompt
from .served_model import ServedModel
from .serving import Job, Serving
from .settings import ServerSettings
from .sse import Reply
from .validation import parse

_MOST_NEW_TOKENS = 16  # of a request that does not say, as in OpenAI's API


def complete(serving: Serving, body: bytes, reply: Reply) -> Job:
    """What a request for completions asks for. Raises as `read_request`."""
    model = serving.model
    asked, given, beginnings = read_request(model, serving.settings, body)
    facts = CompletionFacts(model, asked.model, f"cmpl-{uuid.uuid4().hex}", int(time.time()), asked.logprobs)
    stops = listed_stops(asked.stop)
    readers = [PlainReader(model.tokenizer, stops, asked.logprobs is not None) for _ in given]
    sink: CompletionChunks | WholeCompletion
    if asked.stream:
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        sink = CompletionChunks(facts, beginnings, reply, with_usage)
    else:
        sink = WholeCompletion(facts, beginnings, reply)
    return Job(given, readers, sink)


def read_request(
    model: ServedModel, settings: ServerSettings, body: bytes
) -> tuple[CompletionRequest, list[Order], list[str]]:
    """The request that a body holds, an order for each answer, and the text that each answer begins with.

    Raises ApiError.
    """
    asked = parse(CompletionRequest, body)
    adapter = model.adapter_of(asked.model)
    check_stream_options(asked.stream, asked.stream_options)
    if asked.echo and asked.logprobs is not None:
        raise invalid("echo", "found with logprobs; prompts get no log probabilities, so leave one of them out")
    given, answer_count = _listed(asked.prompt), asked.n or 1
    check_answer_count(len(given) * answer_count, settings.max_requests, "n" if len(given) == 1 else "prompt")
    prompts = _tokens(model, given)
    most = _MOST_NEW_TOKENS if asked.max_tokens is None else asked.max_tokens
    if asked.max_tokens is None and settings.max_new_tokens is not None:
        most = min(most, settings.max_new_tokens)
    new_tokens = model.new_tokens(most, settings.max_new_tokens, "max_tokens")
    sampling = Sampling(asked, asked.seed, asked.logprobs)
    beginnings = [model.tokenizer.text.decode(list(prompt)) if asked.echo else "" for prompt in prompts]
    return (
        asked,
        plain_orders(model, prompts, sampling, new_tokens, answer_count, adapter),
        [beginning for beginning in beginnings for _ in range(answer_count)],
    )


def _listed(given: Prompt) -> list[str | list[int]]:
    """The prompts of a request, which can have one without a list around it."""
    one = isinstance(given, str) or isinstance(given[0], int)
    return cast(list[str | list[int]], [given] if one else given)


def _tokens(model: ServedModel, prompts: list[str | list[int]]) -> list[CheckedTokens]:
    """The tokens of each prompt."""
    found: list[CheckedTokens] = []
    for index, prompt in enumerate(prompts):
        param = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
        tokens = _encoded(model, prompt, param) if isinstance(prompt, str) else prompt
        if not tokens:
            raise invalid(param, "found no text, expected one character or more")
        wrong = [token for token in tokens if token >= model.vocab_size]
        if wrong:
            raise invalid(param, f"found token {wrong[0]}, expected ids of 0 to {model.vocab_size - 1}")
        model.check_room(len(tokens), param)
        found.append(CheckedTokens.of(tokens, model.vocab_size))
    return found


def _encoded(model: ServedModel, text: str, param: str) -> list[int]:
    model.check_bytes([text], param)
    try:
        return model.tokenizer.encode(text)
    except UsageError as error:
        raise invalid(param, str(error)) from None
