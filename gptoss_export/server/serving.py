"""One request from its orders to the end of its response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from ..errors import GptOssExportError, QueueFullError
from .admission import Admission
from .errors import FAILED, OVERLOADED, ApiError, internal
from .generating import Answer, Arrived, Order, arrivals
from .metrics import Metrics
from .readers import Reader
from .record import Record
from .recording import note
from .served_model import ServedModel
from .settings import ServerSettings
from .sinks import Sink, Usage
from .sse import Reply

LOGGER = logging.getLogger(__name__)
_LAST_WORDS = 1.0  # seconds in which a client that reads slowly can still take the error at the end of its stream


@dataclass(frozen=True)
class Serving:
    """What the requests of a server share."""

    model: ServedModel
    settings: ServerSettings
    admission: Admission
    metrics: Metrics


async def answer(
    serving: Serving, record: Record, reply: Reply, orders: Sequence[Order], readers: Sequence[Reader], sink: Sink
) -> None:
    """Let the engine generate an answer for each order, and send what a sink makes of it.

    Where this is cancelled, since the client went away, the engine gives the pages of its answers back before its next
    step. Raises ApiError before the response has begun; after that the sink tells it.
    """
    record.prompt_tokens = _prompt_tokens(orders)
    try:
        async with serving.admission.admitted(len(orders)):
            await _answer(serving, record, orders, readers, sink)
    except Exception as problem:
        error = _reported(problem)
        if not reply.started:
            raise error from problem
        note(record, error)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await sink.fail(error)


def _reported(problem: Exception) -> ApiError:
    """What the client gets to know of a problem."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, QueueFullError):
        return ApiError(
            429, f"{problem}; try again later", OVERLOADED, None, "rate_limit_exceeded", {"retry-after": "1"}
        )
    LOGGER.error("an answer failed", exc_info=problem)
    if isinstance(problem, GptOssExportError):
        return ApiError(500, str(problem), FAILED)
    return internal()


async def _answer(
    serving: Serving, record: Record, orders: Sequence[Order], readers: Sequence[Reader], sink: Sink
) -> None:
    answers: list[Answer] = []
    try:
        for index, order in enumerate(orders):
            answers.append(Answer(serving.model.engine, index, order))
            serving.metrics.prompt(len(order.prompt))
        left = len(answers)
        async with aclosing(_arrivals(serving, answers)) as stream:
            async for arrived in stream:
                record.arrived(arrived, serving.metrics)
                if await _read(arrived, answers[arrived.answer], readers[arrived.answer], sink, record):
                    left -= 1
                    if left == 0:
                        break
        generated, reasoning = (sum(getattr(reader, name) for reader in readers) for name in ("count", "reasoning"))
        await sink.close(Usage(_prompt_tokens(orders), _reused_tokens(orders, answers), generated, reasoning))
    finally:
        for each in answers:
            each.cancel()


async def _arrivals(serving: Serving, answers: Sequence[Answer]) -> AsyncGenerator[Arrived, None]:
    """The tokens of all answers. Waits for the first of them as long as a request may wait."""
    async with aclosing(arrivals(answers)) as stream:
        async with serving.admission.waiting():
            first = await anext(stream)
        yield first
        async for arrived in stream:
            yield arrived


async def _read(arrived: Arrived, generated: Answer, reader: Reader, sink: Sink, record: Record) -> bool:
    """Give the sink what new tokens say. Whether the answer has ended with them."""
    if reader.stopped:  # a step or two may still bring tokens
        return False
    deltas = reader.push(arrived.tokens)
    if arrived.finish is not None:
        if arrived.finish == "cancelled":
            raise ApiError(503, "the server has ended before this answer was complete", FAILED, None, "server_ending")
        deltas += reader.end(cut=arrived.finish in ("length", "context"))
    if deltas:
        await sink.deltas(arrived.answer, deltas)
    if arrived.finish is None and not reader.stopped:
        return False
    generated.cancel()
    reason = reader.finish(arrived.finish or "")
    record.finish.append(reason)
    await sink.finish(arrived.answer, reason)
    return True


def _prompt_tokens(orders: Sequence[Order]) -> int:
    """Tokens of all prompts; answers of one prompt share it."""
    return sum(len(prompt) for prompt in {id(order.prompt): order.prompt for order in orders}.values())


def _reused_tokens(orders: Sequence[Order], answers: Sequence[Answer]) -> int:
    """Tokens of all prompts that no answer had to compute. What one answer of a prompt computed for the next one does
    not count."""
    least: dict[int, int] = {}
    for order, each in zip(orders, answers, strict=True):
        prompt = id(order.prompt)
        least[prompt] = min(each.reused_tokens, least.get(prompt, each.reused_tokens))
    return sum(least.values())
