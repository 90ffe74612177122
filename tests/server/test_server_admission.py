"""A request is let in before its body is read, and all of it has one time."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from live_server import MODEL, SETTINGS, Live, serving
from scripted_engine import ScriptedEngine, answer

from gptoss_export.server.admission import Admission
from gptoss_export.server.errors import ApiError

BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()


@contextmanager
def connected(live: Live) -> Iterator[socket.socket]:
    host, _, port = live.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def begin(connection: socket.socket, body: bytes = b"", length: int = len(BODY)) -> None:
    """Send a request with the beginning of its body."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)


def received(connection: socket.socket) -> tuple[int, Any]:
    """The status and the body of a response."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = dict(iter(lambda: stream.readline().rstrip().lower().partition(b": ")[::2], (b"", b"")))
        return status, json.loads(stream.read(int(headers[b"content-length"])))


def waits(live: Live, running: int) -> None:
    """Until so many answers are admitted."""
    end = time.monotonic() + 10
    while live.admission.running != running:
        assert time.monotonic() < end, live.admission.running
        time.sleep(0.005)


def test_a_full_server_reads_no_body() -> None:
    """Requests whose bodies are on their way count. One more gets its error before it has sent its own."""
    with serving(max_requests=2) as live, connected(live) as first, connected(live) as second, connected(live) as third:
        begin(first, BODY[:5])
        begin(second)
        waits(live, 2)
        begin(third, length=10**7)
        status, body = received(third)
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "found 3 answers that are generated or wait" in body["error"]["message"]
        first.sendall(BODY[5:])
        assert received(first)[0] == 200
        second.close()
        waits(live, 0)
        live.works()


def test_a_refused_client_can_go_on_sending() -> None:
    """Its connection takes the rest of the body, which is dropped, and the next request."""
    with serving(max_requests=1) as live, connected(live) as first, connected(live) as second:
        begin(first)
        waits(live, 1)
        begin(second)
        assert received(second)[0] == 429
        second.sendall(BODY)
        first.sendall(BODY)
        assert received(first)[0] == 200
        begin(second, BODY)
        assert received(second)[0] == 200


def test_a_server_that_ends_reads_no_body() -> None:
    """It waits for a body that is on its way, and for its answer."""
    with serving() as live, connected(live) as early, connected(live) as late:
        begin(early)
        waits(live, 1)
        live.server.drain()
        while live.http.get("/health").status_code == 200:
            time.sleep(0.005)
        begin(late)
        status, body = received(late)
        assert (status, body["error"]["code"]) == (503, "server_ending")
        early.sendall(BODY)
        status, body = received(early)
        assert status == 200 and body["choices"][0]["message"]["content"] == "You said: Hi"


def test_a_body_that_does_not_come_before_the_end() -> None:
    """Its client is told so, in OpenAI's form."""
    with serving(drain_seconds=0.2) as live, connected(live) as connection:
        begin(connection, BODY[:5])
        waits(live, 1)
        live.server.drain()
        status, body = received(connection)
        assert (status, body["error"]["code"]) == (503, "server_ending")


@pytest.mark.parametrize("times", [1, 2], ids=["drained", "at once"])
def test_a_request_that_is_read_at_the_end(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The thread that reads it goes on, and nobody waits for it."""
    reading, over = threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        reading.set()
        over.wait(30)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr("gptoss_export.server.chat.read_messages", slow)
    with serving(drain_seconds=0.2) as live, ThreadPoolExecutor(1) as pool:
        future = pool.submit(live.chat)
        assert reading.wait(10)
        begun = time.monotonic()
        for _ in range(times):
            live.server.drain()
        response = future.result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_ending")
        assert time.monotonic() - begun < 5
        over.set()


def test_one_time_for_the_body_and_the_answer() -> None:
    with serving(ScriptedEngine(step_seconds=0.005), request_seconds=1.0) as live:
        live.engine.script = lambda prompt: answer("word " * 700)

        def body() -> Any:
            yield BODY[:5]
            time.sleep(0.7)
            yield BODY[5:]

        begun = time.monotonic()
        response = live.http.post("/v1/chat/completions", content=body(), headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert 0.9 < time.monotonic() - begun < 1.6


def test_reading_a_request_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    with serving(request_seconds=0.3) as live:
        with monkeypatch.context() as patch:
            patch.setattr("gptoss_export.server.chat.read_messages", lambda *given: over.wait(30))
            response = live.chat()
            assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
            over.set()
        live.works()


def test_other_answers_of_a_request_are_counted_when_they_are_known() -> None:
    with serving(max_requests=4) as live, ThreadPoolExecutor(2) as pool:
        live.engine.held.set()
        running = pool.submit(live.chat, n=2)
        live.engine.wait_until(lambda stats: stats.waiting == 2)
        refused = live.chat(n=3)
        assert refused.status_code == 429 and "found 5 answers that" in refused.json()["error"]["message"]
        assert live.admission.running == 2
        live.engine.held.clear()
        assert running.result().status_code == 200
        waits(live, 0)


def test_a_client_sends_the_next_request_at_once() -> None:
    """The one before has its response, and does not count any more."""
    with serving(max_requests=1) as live:
        assert {live.chat(str(number)).status_code for number in range(200)} == {200}


def test_parts_of_a_request_between_which_it_is_ended() -> None:
    async def run() -> None:
        admission = Admission(SETTINGS)
        async with admission.admitted() as request:
            async with request.in_time():
                pass
            admission.end_all()
            with pytest.raises(ApiError, match="the server has ended"):
                async with request.in_time():
                    await asyncio.sleep(30)
        assert admission.running == 0 and await admission.drain(0)

    asyncio.run(asyncio.wait_for(run(), 10))


def test_the_time_of_something_else() -> None:
    """It is over, and that of the request is not."""

    async def run() -> None:
        async with Admission(SETTINGS).admitted() as request, request.in_time(), asyncio.timeout(0):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(run(), 10))


def test_a_client_that_goes_away_while_its_request_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, over = threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        reading.set()
        over.wait(30)
        raise AssertionError("nobody waits for this")

    with serving() as live:
        with monkeypatch.context() as patch:
            patch.setattr("gptoss_export.server.chat.read_messages", slow)
            with connected(live) as connection:
                begin(connection, BODY)
                assert reading.wait(10)
            waits(live, 0)
            over.set()
        live.works()
