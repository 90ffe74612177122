"""Errors in OpenAI's form, as {"error": {"message", "type", "param", "code"}}, and what becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

INVALID, OVERLOADED, FAILED = "invalid_request_error", "rate_limit_error", "server_error"


class ApiError(Exception):
    """A request gets an error.

    status   of HTTP: 4xx where the client has to change something, 5xx otherwise
    message  what was found, what was expected, what to do
    kind     OpenAI's `type`
    param    the field of the request, such as "messages[0].content"
    code     a word for programs
    headers  of the response
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code = param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """The body of the response, which is also the event in a stream."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def event(self) -> dict[str, object]:
        """As an event of a stream of /v1/responses, without its number."""
        return {"type": "error", "code": self.code or self.kind, "message": self.message, "param": self.param}

    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.to_json(), self.status, self.headers)


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A field of the request is wrong; None: all of it is."""
    return ApiError(400, message if param is None else f"{param}: {message}", INVALID, param, code)


def internal() -> ApiError:
    """A bug. The server's log has its traceback; a client does not get it."""
    return ApiError(500, "the server failed; its log says why", FAILED)
