"""Clients that go away, and clients that read slowly."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from live_server import MODEL, Live, serving
from scripted_engine import ScriptedEngine, answer

LONG = "many words " * 2000


@pytest.fixture(scope="module")
def module_server() -> Iterator[Live]:
    with serving(ScriptedEngine(step_seconds=0.002, slots=4), send_buffer=8192) as live:
        yield live


@pytest.fixture
def slow(live: Live) -> Iterator[Live]:
    """The model has much to say, a token in 2 ms."""
    live.engine.script = lambda prompt: answer(LONG)
    yield live
    live.works()


def send(live: Live, path: str = "/v1/chat/completions", **fields: Any) -> socket.socket:
    """A connection that has sent a request."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    asked: dict[str, Any] = {"model": MODEL, **fields}
    if path == "/v1/responses":
        asked["input"] = "Hi"
    elif path == "/v1/completions":
        asked |= {"prompt": "Hi", "max_tokens": 3000}
    else:
        asked["messages"] = [{"role": "user", "content": "Hi"}]
    body = json.dumps(asked).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    connection.sendall(head.encode() + b"\r\n" + body)
    return connection


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_away_frees_its_pages(slow: Live, path: str, stream: bool) -> None:
    with closing(send(slow, path, stream=stream)) as connection:
        slow.engine.wait_until(lambda stats: stats.running == 1 and stats.held_pages > 0)
        if stream:
            assert connection.recv(1000)
    left = time.monotonic()
    slow.engine.wait_until(lambda stats: stats.running == stats.held_pages == 0)
    assert time.monotonic() - left < 1
    assert waits_for_line(slow, "disconnected")
    assert slow.admission.running == 0


def waits_for_line(live: Live, outcome: str) -> bool:
    """Whether the log's last line soon has an outcome."""
    for _ in range(400):
        if live.lines and json.loads(live.lines[-1]).get("outcome") == outcome:
            return True
        time.sleep(0.01)
    return False


def test_a_client_that_goes_away_while_it_waits(slow: Live) -> None:
    held = [send(slow, stream=True) for _ in range(4)]
    slow.engine.wait_until(lambda stats: stats.running == 4)
    with closing(send(slow, stream=True)):
        slow.engine.wait_until(lambda stats: stats.waiting == 1)
    slow.engine.wait_until(lambda stats: stats.waiting == 0 and stats.running == 4)
    for connection in held:
        connection.close()


def test_one_of_several_answers_does_not_stay(slow: Live) -> None:
    with closing(send(slow, stream=True, n=3)):
        slow.engine.wait_until(lambda stats: stats.running == 3)
    slow.engine.wait_until(lambda stats: stats.running == 0)


def test_a_client_that_goes_away_while_it_sends(slow: Live) -> None:
    host, _, port = slow.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        time.sleep(0.05)
    assert waits_for_line(slow, "disconnected")
    assert slow.engine.requests == []


def test_a_stop_string_frees_the_pages(slow: Live) -> None:
    assert slow.chat(stop="words").json()["choices"][0]["message"]["content"] == "many "
    slow.engine.wait_until(lambda stats: stats.running == 0, seconds=1)
    tokens = slow.engine.stats().tokens
    assert tokens < 3000


def test_a_slow_reader_stalls_nobody(live: Live) -> None:
    """One client reads nothing of a long answer. The engine goes on to its end, another client is served meanwhile,
    and the slow one gets the whole answer when it reads at last."""
    words = "0123456789" * 100
    before = live.engine.stats().tokens
    live.engine.step_seconds = 0.0
    live.engine.script = lambda prompt: answer(words)
    host, _, port = live.url.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        # Log probabilities make hundreds of kB of events of it, more than the buffers of the connection hold.
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        body = json.dumps({**asked, "logprobs": True, "top_logprobs": 10}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        live.engine.wait_until(lambda stats: stats.tokens > before + 1000 and stats.running == 0)
        assert live.admission.running == 1  # it is still being sent
        live.engine.script = lambda prompt: answer("fine")
        begin = time.monotonic()
        assert live.chat("Others").json()["choices"][0]["message"]["content"] == "fine"
        assert time.monotonic() - begin < 2
        received = bytearray()
        connection.settimeout(10)
        while b"[DONE]" not in received[-200:]:
            received += connection.recv(65536)
    text = received.decode()
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith('data: {"')]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == words
    assert len(text) > 300_000


def test_a_reader_that_never_reads_is_given_up() -> None:
    """Its request ends with its time, and so do its tokens; the server goes on."""
    with serving(request_seconds=1.0, send_buffer=8192) as live:
        live.engine.script = lambda prompt: answer("0123456789" * 350)
        host, _, port = live.url.removeprefix("http://").partition(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            body = json.dumps({**asked, "logprobs": True, "top_logprobs": 20}).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            live.engine.wait_until(lambda stats: stats.tokens > 0)
            assert waits_for_line(live, "timeout")
            assert live.admission.running == 0
        live.works()


def test_many_clients_that_go_away(slow: Live) -> None:
    """Two hundred at once, at any time of their requests."""

    def one(index: int) -> None:
        with closing(send(slow, stream=bool(index % 2))) as connection:
            connection.settimeout(0.002 * (index % 10) + 0.001)
            with suppress(TimeoutError):
                connection.recv(100)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow.engine.wait_until(lambda stats: stats.running == stats.waiting == 0)
