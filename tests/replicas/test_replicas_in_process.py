"""An application's response in parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import pytest
from starlette.types import Receive, Scope, Send

from gptoss_export.replicas.calls import ALIVE, Call, Part
from gptoss_export.replicas.in_process import parts, whole

HEADERS = [(b"content-type", b"text/plain")]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def sends(*bodies: bytes, gap: float = 0.0, before: float = 0.0) -> App:
    """An application that sends some bodies."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(before)
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(gap)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def collected(app: App, beat: float = 10.0, spacing: float = 0.0, call: Call | None = None) -> list[Part]:
    async def collect() -> list[Part]:
        return [part async for part in parts(app, call or Call("GET", "/"), beat, lambda: spacing)]

    return asyncio.run(collect())


def test_the_first_part_has_the_status() -> None:
    found = collected(sends(b"one", b"two", gap=0.02))
    assert found[0] == Part(200, tuple(HEADERS), b"one")
    assert b"".join(part.body for part in found) == b"onetwo"
    assert [part.last for part in found] == [False] * (len(found) - 1) + [True]
    assert all(part.status is None and part.headers == () for part in found[1:])


def test_what_comes_quickly_is_joined() -> None:
    bodies = [b"%d " % number for number in range(100)]
    found = collected(sends(*bodies, gap=0.001), spacing=0.05)
    assert b"".join(part.body for part in found) == b"".join(bodies)
    assert 2 <= len(found) <= 10
    assert found[0].body == b"0 "  # the first one waits for nothing


def test_the_end_is_not_held_back() -> None:
    begin = time.monotonic()
    found = collected(sends(b"one", b"two", gap=0.01), spacing=30)
    assert time.monotonic() - begin < 5
    assert found[-1].last


def test_a_replica_that_waits_says_that_it_is_alive() -> None:
    found = collected(sends(b"late", before=0.2), beat=0.05)
    assert found[0] == ALIVE
    assert 2 <= found.count(ALIVE) <= 4
    assert found[-1].last


def test_the_application_sees_the_request() -> None:
    seen: dict[str, object] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope, body=(await receive())["body"])
        await sends()(scope, receive, send)

    collected(app, call=Call("POST", "/a/b", b"c=d", ((b"host", b"here"),), b"body", ("10.0.0.1", 5)))
    expected = {"type": "http", "method": "POST", "path": "/a/b", "query_string": b"c=d", "client": ("10.0.0.1", 5)}
    assert expected.items() <= seen.items()
    assert seen["headers"] == [(b"host", b"here")]
    assert seen["body"] == b"body"


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_who_stops_reading_ends_the_application(way: str) -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": b"begins", "more_body": True})
            await receive()  # the client's disconnection, which does not come
        finally:
            ended.set()

    async def read(stream: AsyncIterator[Part]) -> None:
        async for _ in stream:
            pass

    async def run() -> None:
        async with aclosing(parts(app, Call("GET", "/"), 10, lambda: 0.0)) as stream:
            assert (await anext(stream)).body == b"begins"
            if way == "cancel":
                reading = asyncio.create_task(read(stream))
                await asyncio.sleep(0.05)
                assert not ended.is_set()
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
        assert ended.is_set()

    asyncio.run(run())


def test_an_application_that_fails() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"begins", "more_body": True})
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        collected(app)


def test_an_application_that_forgets_the_end() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})

    with pytest.raises(RuntimeError, match=r"GET /: the application has ended before its response"):
        collected(app)


def test_in_one_part() -> None:
    part = asyncio.run(whole(sends(b"one", b"two"), Call("GET", "/")))
    assert part == Part(200, tuple(HEADERS), b"onetwo", True)
