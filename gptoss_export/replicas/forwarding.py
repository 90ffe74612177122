"""One request from an ingress to a replica, whose response is passed on; another replica where the first one dies."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import Send

from ..server.admission import Admitted
from ..server.errors import FAILED, OVERLOADED, ApiError, internal
from ..server.sse import DONE, error_event, event
from .beginnings import beginnings
from .calls import ALIVE, Call, Header, Part
from .ingress_figures import IngressFigures
from .options import ReplicaOptions

LOGGER = logging.getLogger(__name__)
_MOST_LOST = 2  # replicas that a request may lose before it gets an error
_RESPONSES = "/v1/responses"
_REQUEST_ID = b"x-request-id"  # Serve's proxy adds one of its own
_SEQUENCE = re.compile(rb'"sequence_number":(\d+)')
_TAIL = 65536  # bytes of a part in which the last number of an event is looked for


class LostError(Exception):
    """The replica that answered has died, or says nothing any more. replica: its name, where it has said it."""

    def __init__(self, message: str, replica: str) -> None:
        super().__init__(message)
        self.replica = replica


class UntakenError(Exception):
    """No replica has taken the request yet."""


@dataclass
class ForwardedResponse:
    """A response on its way to the client.

    started  whether the client has got some of it
    number   of the last event, where events have numbers
    """

    send: Send
    path: str
    started: bool = False
    number: int = -1

    async def begin(self, status: int, headers: tuple[Header, ...], replica: str) -> None:
        """The status and the headers of a replica."""
        renamed = [(b"x-gptoss-request" if name == _REQUEST_ID else name, value) for name, value in headers]
        self.started = True
        sent = [*renamed, (b"x-gptoss-replica", replica.encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": sent})

    async def body(self, body: bytes, last: bool) -> None:
        """Some of the body."""
        if self.path == _RESPONSES and (numbers := _SEQUENCE.findall(body[-_TAIL:])):
            self.number = int(numbers[-1])
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: ApiError) -> None:
        """End a stream that has begun with an error, as the server does."""
        if self.path == _RESPONSES:
            end = event({**error.event(), "sequence_number": self.number + 1}, "error")
        else:
            end = error_event(error) + DONE
        await self.send({"type": "http.response.body", "body": end, "more_body": False})


class Forwarding:
    """Sends calls to the replicas of a deployment."""

    def __init__(self, replicas: DeploymentHandle, options: ReplicaOptions, figures: IngressFigures) -> None:
        self._answer = replicas.options(method_name="answer", stream=True)
        self._options, self._figures = options, figures

    async def forward(self, call: Call, send: Send, admitted: Admitted) -> None:
        """Pass the response to a call on to a client.

        Raises ApiError before the response has begun; after that, its stream ends with the error.
        """
        reply = ForwardedResponse(send, call.path)
        try:
            async with admitted.in_time():
                # In a thread: other requests do not wait for the hashes of a long prompt.
                known = await asyncio.to_thread(beginnings, call.body) if call.body else ()
                await self._forward(replace(call, beginnings=known), reply)
        except ApiError as error:
            if not reply.started:
                raise
            await reply.fail(error)
        finally:
            admitted.done()

    async def _forward(self, call: Call, reply: ForwardedResponse) -> None:
        lost, begin = 0, time.monotonic()
        while True:
            try:
                return await self._passed_on(call, reply)
            except UntakenError:
                waited = time.monotonic() - begin
                if waited >= self._options.settings.queue_seconds:
                    raise _nobody(waited) from None
            except LostError as problem:
                lost += 1
                call = replace(call, avoided=(*call.avoided, problem.replica))
                LOGGER.warning("%s %s lost replica %s: %s", call.method, call.path, problem.replica, problem)
                if reply.started or lost == _MOST_LOST:
                    self._figures.lost()
                    raise _lost(reply.started) from None
                self._figures.again()

    async def _passed_on(self, call: Call, reply: ForwardedResponse) -> None:
        """Ask one replica. A response that is no stream is kept until it is complete: if the replica dies meanwhile,
        another one can be asked."""
        kept: list[bytes] = []
        begun: Part | None = None
        replica = ""
        async with aclosing(self._parts(call)) as parts:
            async for part in parts:
                replica = part.replica or replica
                if part.status is not None:
                    begun = part
                    if _is_stream(part):
                        await reply.begin(part.status, part.headers, replica)
                if reply.started:
                    if part.body or part.last:
                        await reply.body(part.body, part.last)
                    continue
                kept.append(part.body)
                if part.last and begun is not None and begun.status is not None:
                    await reply.begin(begun.status, begun.headers, replica)
                    await reply.body(b"".join(kept), True)

    async def _parts(self, call: Call) -> AsyncGenerator[Part, None]:
        """The parts of a response, to the last one. Raises LostError, and UntakenError before the first one."""
        # A context of its own: Serve finds calls by an id in the context, which two calls of a request would share.
        response = contextvars.Context().run(self._answer.remote, call)
        assert isinstance(response, DeploymentResponseGenerator)
        silence = self._options.patience.silence
        seconds = min(silence, self._options.settings.queue_seconds)  # for a replica to take it
        taken, part, replica = False, ALIVE, ""
        try:
            while not part.last:
                try:
                    async with asyncio.timeout(seconds):
                        part = await anext(response)
                except TimeoutError:
                    if not taken:
                        raise UntakenError from None
                    raise LostError(f"it sent nothing for {silence:g} s", replica) from None
                except asyncio.CancelledError:
                    if _cancelled():
                        raise
                    raise LostError("it has cancelled the request", replica) from None
                except StopAsyncIteration:
                    raise LostError("its response has no end", replica) from None
                except RayTaskError as error:
                    LOGGER.error("a replica failed: %s", error)
                    raise internal() from error
                except (RayError, RayServeException) as error:
                    raise LostError(str(error).strip().partition("\n")[0], replica) from error
                taken, seconds, replica = True, silence, part.replica or replica
                yield part
        finally:
            if not part.last:
                response.cancel()


def _cancelled() -> bool:
    """Whether somebody cancels this task. Serve raises the same error where a replica cancels its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_stream(part: Part) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in part.headers)


def _nobody(seconds: float) -> ApiError:
    return ApiError(
        503,
        f"no replica of the model took the request in {seconds:.0f} s; try again later",
        OVERLOADED,
        code="queue_timeout",
        headers={"retry-after": "5"},
    )


def _lost(started: bool) -> ApiError:
    found = "the replica that generated this answer has ended" if started else "the replicas that were asked have ended"
    return ApiError(503, f"{found}; send the request again", FAILED, code="replica_lost", headers={"retry-after": "1"})
