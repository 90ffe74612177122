"""Reads the body of a request, up to a limit."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from .admission import Admitted
from .errors import ApiError

_DISCARD_SECONDS = 2.0  # how long what comes after the limit is read and dropped


async def read_body(scope: Scope, receive: Receive, admitted: Admitted, limit: int) -> bytes:
    """The body of a request that says that it is JSON. It is read piece by piece, and no further than a limit of bytes.

    Raises ApiError for one that is longer, late, or of another type, and where the server ends; ClientDisconnect where
    the client goes away.
    """
    async with admitted.in_time(_late):
        return await _read(scope, receive, limit)


def _late(seconds: float) -> ApiError:
    return ApiError(
        408,
        f"the body was not complete after {seconds:g} s; send it faster",
        code="timeout",
        headers={"connection": "close"},
    )


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    headers = dict(scope["headers"])
    said = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if said != b"application/json":
        found = said.decode("latin-1") or "none"
        raise ApiError(415, f"Content-Type: found {found}, expected application/json; send the request as JSON")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        raise ApiError(415, f"Content-Encoding: found {encoding.decode('latin-1')}, expected none; send plain JSON")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        waits = b"expect" in headers  # it has not begun to send, and does not after an error
        raise await _too_long(None if waits else receive, int(length), limit)
    parts, count = [], 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        count += len(part)
        if count > limit:
            raise await _too_long(receive if more else None, count, limit)
        parts.append(part)
    return b"".join(parts)


async def _too_long(receive: Receive | None, found: int, limit: int) -> ApiError:
    """The error, once some more was read: a client that still sends would lose the response with the connection."""
    rest = 4 * limit
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while receive is not None and rest > 0:
                message = await receive()
                rest -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    return ApiError(
        413,
        f"the body has {found} bytes or more, expected {limit} at most; send less, or start the server with --max-body",
        code="request_too_large",
        headers={"connection": "close"},
    )
