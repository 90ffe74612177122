"""Counts and logs every request, and answers where the code that should have answered fails."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .admission import Admission
from .errors import ApiError, internal
from .log import Log
from .metrics import Metrics
from .record import Record
from .route_path import route_path

LOGGER = logging.getLogger(__name__)
_QUIET = ("/health", "/metrics", "/", "/page")  # asked again and again: logged only where they fail
_MODELS = "/v1/models"
_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/responses", _MODELS, *_QUIET}


class Recording:
    """A layer around the server's application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, admission: Admission, log: Log | None) -> None:
        self._app, self._metrics, self._admission, self._log = app, metrics, admission, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_path(route_path(scope)))
        record.keep(scope)
        complete = False

        async def recorded(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode())]
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, recorded)
        except asyncio.CancelledError:  # a replica's client has gone away, or uvicorn ends what is left
            if not complete and record.outcome == "ok":
                record.outcome = "ended" if self._admission.draining else "disconnected"
            raise
        except Exception as error:
            record.outcome, record.error = "failed", type(error).__name__
            LOGGER.exception("%s failed", record.id)
            if record.status is None:
                await internal().response()(scope, receive, recorded)
        finally:
            self._end(scope, record)

    def _end(self, scope: Scope, record: Record) -> None:
        seconds = time.perf_counter() - record.start
        if record.outcome == "ok" and record.status is not None and record.status >= 400:
            record.outcome = "failed" if record.status >= 500 else "error"
        self._metrics.request(record.path, record.outcome, seconds)
        if self._log is not None and not (record.path in _QUIET and record.outcome == "ok"):
            client = scope.get("client")
            self._log.event(
                "request",
                id=record.id,
                client=client[0] if client else None,
                method=scope["method"],
                path=scope["path"],
                status=record.status,
                outcome=record.outcome,
                error=record.error,
                seconds=round(seconds, 6),
                first_token_s=None if record.first_token_s is None else round(record.first_token_s, 6),
                prompt_tokens=record.prompt_tokens or None,
                generated_tokens=record.generated_tokens or None,
                finish=",".join(record.finish) or None,
            )


def note(record: Record, error: ApiError) -> None:
    """A request gets an error."""
    record.error = error.code or error.kind
    if error.code == "timeout":
        record.outcome = "timeout"
    elif error.status in (429, 503):
        record.outcome = "ended" if error.code == "server_ending" else "overloaded"
    else:
        record.outcome = "failed" if error.status >= 500 else "error"


def _path(path: str) -> str:
    """A path that the figures can have as a label: one of a few."""
    if path.startswith(f"{_MODELS}/"):
        return _MODELS
    if path.startswith("/page/"):
        return "/page"
    return path if path in _PATHS else "other"
