"""The end of a server: signals to a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live_server import MODEL

from gptoss_export.errors import UsageError
from gptoss_export.server.process import address_of, listening_socket

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
Start = Callable[..., tuple[subprocess.Popen[str], httpx.Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server: its process, and a client of it."""
    processes, clients = [], []

    def start(
        step_seconds: float, drain_seconds: float, read_seconds: float = 0.0
    ) -> tuple[subprocess.Popen[str], httpx.Client]:
        script = Path(__file__).with_name("serve_scripted.py")
        command = [sys.executable, str(script), *map(str, (step_seconds, drain_seconds, read_seconds))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        client = httpx.Client(base_url=process.stdout.readline().strip(), timeout=30, trust_env=False, verify=False)
        clients.append(client)
        return process, client

    yield start
    for client in clients:
        client.close()
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def streaming(client: httpx.Client, pool: ThreadPoolExecutor) -> tuple[Future[str], list[str]]:
    """A request whose stream has begun: its end, and what came so far."""
    lines: list[str] = []

    def read() -> str:
        with client.stream("POST", "/v1/chat/completions", json={**ASKED, "stream": True}) as response:
            for line in response.iter_lines():
                lines.append(line)
        return "\n".join(lines)

    future = pool.submit(read)
    while not lines:
        time.sleep(0.005)
    return future, lines


def said(text: str) -> str:
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith('data: {"id"')]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_what_runs_is_finished(start: Start) -> None:
    """New requests are refused meanwhile, and /health says so."""
    process, client = start(0.002, 30)
    with ThreadPoolExecutor(1) as pool:
        future, _ = streaming(client, pool)
        process.terminate()
        while client.get("/health").status_code == 200:
            time.sleep(0.005)
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        refused = client.post("/v1/chat/completions", json=ASKED)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_ending"
        assert "retry-after" in refused.headers
        assert said(future.result()) == "word " * 100
    assert process.wait(10) == 0


def test_what_takes_too_long_is_ended(start: Start) -> None:
    process, client = start(0.05, 0.3)
    with ThreadPoolExecutor(1) as pool:
        future, _ = streaming(client, pool)
        process.terminate()
        text = future.result()
    assert '"code":"server_ending"' in text and text.rstrip().endswith("data: [DONE]")
    assert 0 < len(said(text)) < 500
    assert process.wait(10) == 128 + signal.SIGTERM


def test_a_second_signal_ends_at_once(start: Start) -> None:
    process, client = start(0.05, 60)
    with ThreadPoolExecutor(1) as pool:
        future, _ = streaming(client, pool)
        process.terminate()
        while client.get("/health").status_code == 200:
            time.sleep(0.005)
        begin = time.monotonic()
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 4
        future.exception()


def test_the_end_does_not_wait_for_a_request_that_is_read(start: Start) -> None:
    """Its client is told so, and the process has its exit code."""
    process, client = start(0.001, 60, 30)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Read me."}]}
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.post, "/v1/chat/completions", json=asked)
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        begin = time.monotonic()
        process.terminate()
        while client.get("/health").status_code == 200:
            time.sleep(0.005)
        process.terminate()
        response = future.result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_ending")
        assert process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 8


def test_an_idle_server_ends_at_once(start: Start) -> None:
    process, client = start(0.001, 60)
    assert client.get("/health").status_code == 200
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert time.monotonic() - begin < 3


def test_an_address_that_is_taken() -> None:
    with listening_socket("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert address_of(bound) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"--host 127.0.0.1 --port {port}: cannot be had"):
            listening_socket("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"--host 203.0.113.1 --port 0: cannot be had"):
        listening_socket("203.0.113.1", 0)
    with pytest.raises(UsageError, match=r"--host nowhere\.invalid"):
        listening_socket("nowhere.invalid", 0)
