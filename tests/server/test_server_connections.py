"""Connections of clients that send too much, too little, or do not read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from live_server import MODEL, Live, serving
from scripted_engine import answer

from gptoss_export.server import connection

LIMIT = 0.4  # seconds without anything after which a connection is cut
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", LIMIT / 2)
    with serving(request_seconds=2.0, send_buffer=8192) as live:
        yield live


def connected(live: Live) -> socket.socket:
    """A connection whose system holds few bytes."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.settimeout(10)
    return client


def is_cut(client: socket.socket) -> bool:
    """Whether the server ends the connection, and sends nothing before."""
    try:
        return client.recv(1000) == b""
    except ConnectionError:
        return True


def test_a_head_without_an_end(live: Live) -> None:
    """The server keeps little of it, whatever else is installed."""
    line = b"x-header: " + b"x" * 1000 + b"\r\n"
    sent = 0
    with connected(live) as client, suppress(ConnectionError):
        client.sendall(HEAD)
        while sent < 8 * 2**20:
            client.sendall(line)
            sent += len(line)
    assert sent < 4 * 2**20  # most of it waits in the system


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD], ids=["nothing", "a word", "half a head"])
def test_a_request_that_does_not_come(live: Live, sent: bytes) -> None:
    with connected(live) as client:
        client.sendall(sent)
        begin = time.monotonic()
        assert is_cut(client)
        assert LIMIT / 4 < time.monotonic() - begin < 5


def test_half_a_request_after_a_response(live: Live) -> None:
    with connected(live) as client:
        client.sendall(HEAD + b"\r\n")
        assert client.recv(100_000).startswith(b"HTTP/1.1 200")
        client.sendall(HEAD)
        assert is_cut(client)


def test_a_head_that_comes_in_drops(live: Live) -> None:
    """It must be complete in time, not only go on."""
    with connected(live) as client, pytest.raises(ConnectionError):
        client.sendall(HEAD)
        for _ in range(200):
            client.sendall(b"a: b\r\n")
            time.sleep(0.05)


def test_a_client_that_does_not_read(live: Live) -> None:
    """Its request ends with its time, and its connection soon after."""
    live.engine.script = lambda prompt: answer("0123456789" * 350)
    with connected(live) as client:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        body = json.dumps({**asked, "logprobs": True, "top_logprobs": 20}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        live.engine.wait_until(lambda stats: stats.tokens > 0)
        end = time.monotonic() + 10
        while live.server.server_state.connections:
            assert time.monotonic() < end, "the connection is still open"
            time.sleep(0.02)
    live.works()


def test_a_request_that_waits_is_not_cut(live: Live) -> None:
    """Its client sends nothing and gets nothing meanwhile."""
    live.engine.held.set()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(live.chat)
        live.engine.wait_until(lambda stats: stats.waiting == 1)
        time.sleep(3 * LIMIT)
        live.engine.held.clear()
        assert waiting.result().status_code == 200


def test_a_client_that_reads_slowly_is_not_cut(live: Live) -> None:
    """It takes longer than the limit for a response that is complete, and goes on reading."""
    live.engine.script = lambda prompt: answer("0123456789" * 100)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 10}
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with connected(live) as client:
        client.sendall(head.encode() + body)
        received = bytearray(client.recv(4096))
        begin = time.monotonic()
        while part := client.recv(4096):
            received += part
            time.sleep(0.01)
    assert time.monotonic() - begin > 2 * LIMIT
    choices = json.loads(received.partition(b"\r\n\r\n")[2])["choices"]
    assert choices[0]["message"]["content"] == "0123456789" * 100
