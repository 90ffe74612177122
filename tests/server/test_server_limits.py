"""How much a server takes, how long a request takes, and what fails in the middle."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from live_server import MODEL, Live, serving
from openai import APIError, OpenAI
from scripted_engine import ScriptedEngine, answer

from gptoss_export.errors import RunError
from gptoss_export.structure.grammars import LimitError

HI: Any = [{"role": "user", "content": "Hi"}]


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def last_event(response: httpx.Response) -> Any:
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return json.loads([event for event in events if event != "[DONE]"][-1])


def test_too_many_requests() -> None:
    """Three answers are taken, whatever requests they are of; a fourth is refused, and taken later."""
    with serving(ScriptedEngine(slots=1), max_requests=3) as live, ThreadPoolExecutor(2) as pool:
        live.engine.held.set()
        first, second = pool.submit(live.chat, n=2), pool.submit(live.chat)
        live.engine.wait_until(lambda stats: stats.waiting == 3)
        refused = live.chat()
        assert error_of(refused) == (429, "rate_limit_exceeded") and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        live.engine.held.clear()
        assert len(first.result().json()["choices"]) == 2 and second.result().status_code == 200
        never = live.chat(n=4)
        assert never.status_code == 400 and never.json()["error"]["param"] == "n"
        assert "found 4 answers in one request, expected 3 at most" in never.json()["error"]["message"]
        live.works()


def test_the_queue_of_the_engine_is_full() -> None:
    with serving(ScriptedEngine(most_waiting=1)) as live, ThreadPoolExecutor(1) as pool:
        live.engine.held.set()
        waiting = pool.submit(live.chat)
        live.engine.wait_until(lambda stats: stats.waiting == 1)
        assert error_of(live.chat()) == (429, "rate_limit_exceeded")
        assert error_of(live.chat(stream=True)) == (429, "rate_limit_exceeded")
        live.engine.held.clear()
        assert waiting.result().status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_request_waits_too_long_for_its_first_token(stream: bool) -> None:
    """The error has its status also where a stream was asked for: nothing was sent yet."""
    with serving(queue_seconds=0.1) as live:
        live.engine.held.set()
        response = live.chat(stream=stream)
        assert error_of(response) == (503, "queue_timeout") and response.headers["retry-after"] == "1"
        live.engine.wait_until(lambda stats: stats.waiting == 0)
        live.engine.held.clear()
        live.works()


def test_a_request_takes_too_long() -> None:
    with serving(ScriptedEngine(step_seconds=0.005), request_seconds=0.4) as live:
        live.engine.script = lambda prompt: answer("word " * 700)
        response = live.chat()
        assert error_of(response) == (504, "timeout") and "after 0.4 s" in response.json()["error"]["message"]
        live.engine.wait_until(lambda stats: stats.running == 0)
        streamed = live.chat(stream=True)
        assert streamed.status_code == 200 and last_event(streamed)["error"]["code"] == "timeout"
        live.engine.script = lambda prompt: answer("word " * 700)
        asked = {"model": MODEL, "input": "Hi", "stream": True}
        failed = live.post("/v1/responses", asked)
        last = last_event(failed)
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error" and "event: error\n" in failed.text
        client = OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0)
        with pytest.raises(APIError, match=r"not complete after 0\.4 s"):
            list(client.chat.completions.create(model=MODEL, messages=HI, stream=True))
        live.engine.wait_until(lambda stats: stats.running == 0)


def test_a_body_that_comes_too_slowly() -> None:
    with serving(request_seconds=0.3) as live:

        def body() -> Any:
            yield b"{"
            time.sleep(1)
            yield b"}"

        response = live.http.post("/v1/chat/completions", content=body(), headers={"content-type": "application/json"})
        assert error_of(response) == (408, "timeout")
        live.works()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (RunError("slot 3: a weight is not finite"), "slot 3: a weight is not finite"),
        (ValueError("secret"), "the server failed; its log says why"),
    ],
)
def test_the_engine_fails(problem: Exception, message: str) -> None:
    """In the first step the client gets a status, later the end of its stream. The server goes on."""
    with serving(ScriptedEngine(step_seconds=0.002)) as live:
        live.engine.fails = problem
        for stream in (False, True):
            live.engine.fails = problem
            response = live.chat(stream=stream)
            assert response.status_code == 500 and response.json()["error"]["message"] == message
            assert response.json()["error"]["type"] == "server_error"
        live.engine.script = lambda prompt: answer("word " * 500)

        thread = threading.Thread(target=fails_after, args=(live, 50, problem))
        thread.start()
        assert last_event(live.chat(stream=True))["error"]["message"] == message
        thread.join()
        live.works()


FORMAT = {"type": "json_object"}
STRICT = {
    "name": "f",
    "strict": True,
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"response_format": FORMAT}, "response_format"),
        ("/v1/chat/completions", {"tools": [{"type": "function", "function": STRICT}]}, "tools"),
        (
            "/v1/chat/completions",
            {"response_format": FORMAT, "tools": [{"type": "function", "function": STRICT}]},
            None,
        ),
        ("/v1/responses", {"text": {"format": FORMAT}}, "text.format"),
        ("/v1/responses", {"tools": [{"type": "function", **STRICT}]}, "tools"),
    ],
)
def test_a_format_is_too_complex_while_it_is_answered(
    path: str, fields: dict[str, Any], param: str | None, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has to change it: no fault of the server."""
    problem = LimitError("the format of this answer is too complex (x); ask for a simpler one", None)
    with serving(ScriptedEngine(step_seconds=0.002)) as live:
        asked = {"model": MODEL, "stream": stream, **fields}
        asked |= {"input": "Hi"} if path == "/v1/responses" else {"messages": HI}
        live.engine.fails = problem
        response = live.post(path, asked)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert error["message"].endswith("is too complex (x); ask for a simpler one", None)
        if stream:
            live.engine.script = lambda prompt: answer("word " * 100, "thought " * 100)
            live.engine.steps = 0
            thread = threading.Thread(target=fails_after, args=(live, 30, problem))
            thread.start()
            events = live.post(path, asked).text
            thread.join()
            assert "is too complex (x)" in events
            assert path != "/v1/responses" or '"error":{"code":"invalid_prompt"' in events
            assert (
                '"code":"invalid_request_error"' if path == "/v1/responses" else '"invalid_request_error"'
            ) in events
    assert not caplog.records


def fails_after(live: Live, steps: int, problem: Exception) -> None:
    """Let the engine fail once it has taken some steps."""
    live.engine.wait_until(lambda stats: live.engine.steps > steps)
    live.engine.fails = problem


def test_the_engine_ends_before_its_requests() -> None:
    with serving(ScriptedEngine(step_seconds=0.002)) as live, ThreadPoolExecutor(1) as pool:
        live.engine.script = lambda prompt: answer("word " * 500)
        running = pool.submit(live.chat)
        live.engine.wait_until(lambda stats: stats.running == 1)
        live.engine.close()
        assert error_of(running.result()) == (503, "server_ending")


def live_again(live: Live) -> bool:
    return live.http.get("/health").status_code == 200


def test_a_bug_in_a_path_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    with serving() as live:
        with monkeypatch.context() as patch:
            patch.setattr("gptoss_export.server.chat.read_messages", broken)
            response = live.chat()
            assert response.status_code == 500 and response.headers["x-request-id"].startswith("req_")
            assert response.json()["error"]["message"] == "the server failed; its log says why"
        assert live_again(live)
        live.works()
