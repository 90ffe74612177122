"""Serves the orders of one request, from the engine to the end of the response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from ..errors import GptOssExportError, QueueFullError
from ..structure.grammars import LimitError
from .admission import Admission, Admitted
from .errors import FAILED, OVERLOADED, ApiError, internal, invalid
from .generating import Arrived, Order, RunningAnswer, arrivals
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


@dataclass(frozen=True)
class Job:
    """A request that was read: what the engine gets, and what becomes of its tokens.

    orders        one for each answer
    readers       of the tokens of each answer
    sink          writes the response
    format_param  the field of the request that says what its answers look like, for errors; None where two do
    """

    orders: Sequence[Order]
    readers: Sequence[Reader]
    sink: Sink
    format_param: str | None = None


async def serve_orders(serving: Serving, record: Record, admitted: Admitted, reply: Reply, job: Job) -> None:
    """Let the engine generate an answer for each order, and send what the sink makes of it.

    Where this is cancelled, since the client went away, the engine gives the pages of its answers back before its next
    step. Raises ApiError before the response has begun. After that the sink writes the error into the response.
    """
    record.prompt_tokens = _prompt_tokens(job.orders)
    try:
        admitted.add(len(job.orders) - admitted.answer_count)
        async with admitted.in_time():
            await _generate(serving, record, job)
    except Exception as problem:
        error = _reported(problem, job)
        if not reply.started:
            raise error from problem
        note(record, error)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await job.sink.fail(error)
    finally:
        admitted.done()


def _reported(problem: Exception, job: Job) -> ApiError:
    """What the client gets to know of a problem."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, LimitError):
        return invalid(job.format_param, str(problem))
    if isinstance(problem, QueueFullError):
        return ApiError(
            429, f"{problem}; try again later", OVERLOADED, None, "rate_limit_exceeded", {"retry-after": "1"}
        )
    LOGGER.error("an answer failed", exc_info=problem)
    if isinstance(problem, GptOssExportError):
        return ApiError(500, str(problem), FAILED)
    return internal()


async def _generate(serving: Serving, record: Record, job: Job) -> None:
    answers: list[RunningAnswer] = []
    try:
        for index, order in enumerate(job.orders):
            answers.append(RunningAnswer(serving.model.engine, index, order))
            serving.metrics.prompt(len(order.prompt))
        left = len(answers)
        async with aclosing(_arrivals(serving, answers)) as stream:
            async for arrived in stream:
                record.arrived(arrived, serving.metrics)
                if await _read(arrived, answers[arrived.index], job, record):
                    left -= 1
                    if left == 0:
                        break
        generated = sum(reader.count for reader in job.readers)
        reasoning = sum(reader.reasoning for reader in job.readers)
        reused = _reused_tokens(job.orders, answers)
        await job.sink.close(Usage(record.prompt_tokens, reused, generated, reasoning))
    finally:
        for answer in answers:
            answer.cancel()


async def _arrivals(serving: Serving, answers: Sequence[RunningAnswer]) -> AsyncGenerator[Arrived, None]:
    """The tokens of all answers. Waits for the first of them as long as a request may wait."""
    async with aclosing(arrivals(answers)) as stream:
        async with serving.admission.waiting():
            first = await anext(stream)
        yield first
        async for arrived in stream:
            yield arrived


async def _read(arrived: Arrived, answer: RunningAnswer, job: Job, record: Record) -> bool:
    """Give the sink what new tokens say. Whether the answer has ended with them."""
    reader, sink = job.readers[arrived.index], job.sink
    if reader.stopped:  # a step or two may still bring tokens
        return False
    deltas = reader.push(arrived.tokens)
    if arrived.finish is not None:
        if arrived.finish == "cancelled":
            raise ApiError(503, "the server has ended before this answer was complete", FAILED, None, "server_ending")
        deltas += reader.end(cut=arrived.finish in ("length", "context"))
    if deltas:
        await sink.deltas(arrived.index, deltas)
    if arrived.finish is None and not reader.stopped:
        return False
    answer.cancel()
    reason = reader.finish(arrived.finish or "")
    record.finish.append(reason)
    await sink.finish(arrived.index, reason)
    return True


def _prompt_tokens(orders: Sequence[Order]) -> int:
    """Tokens of all prompts; answers of one prompt share it."""
    return sum(len(prompt) for prompt in {id(order.prompt): order.prompt for order in orders}.values())


def _reused_tokens(orders: Sequence[Order], answers: Sequence[RunningAnswer]) -> int:
    """Tokens of all prompts that no answer had to compute. What one answer of a prompt computed for the next one does
    not count."""
    least: dict[int, int] = {}
    for order, answer in zip(orders, answers, strict=True):
        prompt = id(order.prompt)
        least[prompt] = min(answer.reused_tokens, least.get(prompt, answer.reused_tokens))
    return sum(least.values())
