"""/v1/completions: prompts are continued as they are, without the chat format."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import cast

from ..errors import UsageError
from .chat_sinks import Completion
from .completion_sinks import CompletionChunks, WholeCompletion
from .errors import invalid
from .fields import check_stream_options, listed_stops
from .generating import Order
from .ordering import Sampling, plain_orders
from .readers import PlainReader
from .record import Record
from .requests_completions import CompletionRequest
from .served_model import ServedModel
from .serving import Serving, answer
from .settings import ServerSettings
from .sse import Reply
from .validation import parse

_MOST_NEW_TOKENS = 16  # of a request that does not say, as in OpenAI's API


async def complete(serving: Serving, record: Record, body: bytes, reply: Reply) -> None:
    """Answer a request for completions."""
    model = serving.model
    asked, given, texts = await asyncio.to_thread(read_request, model, serving.settings, body)
    completion = Completion(model, f"cmpl-{uuid.uuid4().hex}", int(time.time()), asked.logprobs)
    stops = listed_stops(asked.stop)
    readers = [PlainReader(model.tokenizer, stops, asked.logprobs is not None) for _ in given]
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        await answer(serving, record, reply, given, readers, CompletionChunks(completion, texts, reply, usage))
    else:
        await answer(serving, record, reply, given, readers, WholeCompletion(completion, texts, reply))


def read_request(
    model: ServedModel, settings: ServerSettings, body: bytes
) -> tuple[CompletionRequest, list[Order], list[str]]:
    """The request that a body holds, an order for each answer, and the text that each answer begins with.

    Raises ApiError.
    """
    asked = parse(CompletionRequest, body)
    model.check_name(asked.model)
    check_stream_options(asked.stream, asked.stream_options)
    if asked.echo and asked.logprobs is not None:
        raise invalid("echo", "found with logprobs; prompts get no log probabilities, so leave one of them out")
    prompts = _prompts(model, asked)
    answers = asked.n or 1
    most = _MOST_NEW_TOKENS if asked.max_tokens is None else asked.max_tokens
    if asked.max_tokens is None and settings.max_new_tokens is not None:
        most = min(most, settings.max_new_tokens)
    new_tokens = model.new_tokens(most, settings.max_new_tokens, "max_tokens")
    given = plain_orders(model, prompts, Sampling(asked, asked.seed, asked.logprobs), new_tokens, answers)
    texts = [model.tokenizer.text.decode(list(order.prompt)) if asked.echo else "" for order in given]
    return asked, given, texts


def _prompts(model: ServedModel, asked: CompletionRequest) -> list[list[int]]:
    """The tokens of each prompt."""
    given = asked.prompt
    one = isinstance(given, str) or isinstance(given[0], int)
    prompts = cast(list[str | list[int]], [given] if one else given)
    found: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        param = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
        try:
            tokens = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        except UsageError as error:
            raise invalid(param, str(error)) from None
        if not tokens:
            raise invalid(param, "found no text, expected one character or more")
        wrong = [token for token in tokens if token >= model.vocab_size]
        if wrong:
            raise invalid(param, f"found token {wrong[0]}, expected ids of 0 to {model.vocab_size - 1}")
        model.check_room(len(tokens), param)
        found.append(tokens)
    return found
