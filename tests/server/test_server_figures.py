"""The figures of /metrics, and the lines of the log."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import aclosing
from typing import Any

import pytest
from live_server import MODEL, Live, served, serving
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import PAGE, ScriptedEngine, answer
from starlette.types import Receive, Scope, Send

from gptoss_export.replicas.calls import Call
from gptoss_export.replicas.in_process import parts, whole
from gptoss_export.server.admission import Admission
from gptoss_export.server.app import make_app
from gptoss_export.server.log import Log
from gptoss_export.server.metrics import Metrics
from gptoss_export.server.recording import Recording
from gptoss_export.server.settings import ServerSettings


def figures(live: Live) -> dict[str, float]:
    """The samples by name and labels."""
    text = live.http.get("/metrics").text
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lines(live: Live, count: int) -> list[dict[str, Any]]:
    """The log once it has so many lines."""
    for _ in range(500):
        if len(live.lines) >= count:
            break
        time.sleep(0.01)
    return [json.loads(line) for line in live.lines]


def test_the_figures_of_requests() -> None:
    with serving() as live:
        before = figures(live)
        assert before["gptoss_requests_running"] == before["gptoss_generated_tokens_total"] == 0
        assert before["gptoss_kv_pages"] == 10_000 and before["gptoss_draining"] == 0
        usage = [live.chat(text).json()["usage"] for text in ("a", "b")]
        live.chat(temperature=7)
        live.http.get("/v1/nothing")
        after = figures(live)
        assert after["gptoss_prompt_tokens_total"] == sum(each["prompt_tokens"] for each in usage)
        generated = sum(each["completion_tokens"] for each in usage)
        assert after["gptoss_generated_tokens_total"] == after["gptoss_engine_tokens_total"] == generated
        assert after["gptoss_time_to_first_token_seconds_count"] == 2
        assert after["gptoss_time_between_tokens_seconds_count"] == generated - 2
        # The labels are the outcome and the path.
        assert after["gptoss_http_requests_total ok /v1/chat/completions"] == 2
        assert after["gptoss_http_requests_total error /v1/chat/completions"] == 1
        assert after["gptoss_http_requests_total error other"] == 1
        assert after["gptoss_request_duration_seconds_count /v1/chat/completions"] == 3
        assert 0 < after["gptoss_request_duration_seconds_sum /v1/chat/completions"] < 60


def test_the_figures_of_the_engine() -> None:
    """Running and waiting answers, and the pages that they hold."""
    with serving(ScriptedEngine(slots=2, step_seconds=0.002)) as live:
        live.engine.script = lambda prompt: answer("word " * 100)
        threads = [threading.Thread(target=live.chat) for _ in range(3)]
        for thread in threads:
            thread.start()
        live.engine.wait_until(lambda stats: (stats.running, stats.waiting) == (2, 1))
        found = figures(live)
        assert (found["gptoss_requests_running"], found["gptoss_requests_waiting"]) == (2, 1)
        assert found["gptoss_requests_admitted"] == 3
        assert found["gptoss_kv_pages_used"] >= 2 * len(live.engine.requests[0].prompt) // PAGE
        for thread in threads:
            thread.join()
        idle = figures(live)
        assert idle["gptoss_requests_running"] == idle["gptoss_kv_pages_used"] == idle["gptoss_requests_admitted"] == 0
        assert idle["gptoss_engine_ended_total"] == 3


def test_two_servers_do_not_mix() -> None:
    with serving() as first, serving() as second:
        first.chat()
        assert figures(first)["gptoss_time_to_first_token_seconds_count"] == 1
        assert figures(second)["gptoss_time_to_first_token_seconds_count"] == 0


def test_a_line_for_each_request() -> None:
    """What was asked and answered is not in it, and neither are the requests of monitors."""
    with serving() as live:
        usage = live.chat("a secret question").json()["usage"]
        live.http.get("/health")
        live.http.get("/metrics")
        live.http.get("/v1/models")
        live.http.get("/v1/models/gpt%1b4")
        first, models, missing = lines(live, 3)
        assert {name: first[name] for name in ("event", "method", "path", "status", "outcome", "finish")} == {
            "event": "request",
            "method": "POST",
            "path": "/v1/chat/completions",
            "status": 200,
            "outcome": "ok",
            "finish": "stop",
        }
        assert first["prompt_tokens"] == usage["prompt_tokens"] and first["id"].startswith("req_")
        assert first["generated_tokens"] == usage["completion_tokens"] and first["client"] == "127.0.0.1"
        assert 0 < first["first_token_s"] <= first["seconds"]
        assert models["path"] == "/v1/models" and "prompt_tokens" not in models
        assert (missing["path"], missing["status"], missing["error"]) == ("/v1/models/gpt\x1b4", 404, "model_not_found")
        assert not any("secret" in line or "question" in line for line in live.lines)


@pytest.mark.parametrize(("draining", "outcome"), [(False, "disconnected"), (True, "ended")])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_request_that_is_cancelled(draining: bool, outcome: str, stream: bool) -> None:
    """As by a replica whose client goes away, and by uvicorn at the end."""
    written: list[str] = []
    engine, log = ScriptedEngine(step_seconds=0.002), Log(written.append, as_json=True)
    engine.script = lambda prompt: answer("word " * 500)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    headers = ((b"content-type", b"application/json"),)

    async def run() -> str:
        admission = Admission(ServerSettings())
        app = make_app(served(engine), ServerSettings(), log, admission)
        path = "/v1/chat/completions"
        call = Call("POST", path, headers=headers, body=json.dumps(body).encode())
        async with aclosing(parts(app, call, 0.05, lambda: 0.0)) as stream:
            async for _ in stream:
                if engine.stats().tokens > 20:
                    break
            admission.draining = draining
        return (await whole(app, Call("GET", "/metrics"))).body.decode()

    text = asyncio.run(run())
    log.close()
    engine.close()
    assert f'gptoss_http_requests_total{{outcome="{outcome}",path="/v1/chat/completions"}} 1.0' in text
    assert [json.loads(line)["outcome"] for line in written] == [outcome]


def test_a_request_that_is_cancelled_after_its_response() -> None:
    """A replica whose response is complete ends the application at once."""
    written: list[str] = []
    log = Log(written.append, as_json=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        await asyncio.sleep(60)

    async def run() -> None:
        admission, engine = Admission(ServerSettings()), ScriptedEngine()
        recording = Recording(app, Metrics(engine.stats, admission), admission, log)
        assert [part.body async for part in parts(recording, Call("GET", "/v1/models"), 5, lambda: 0.0)] == [b"done"]
        engine.close()

    asyncio.run(run())
    log.close()
    assert json.loads(written[0])["outcome"] == "ok"


def test_lines_for_people() -> None:
    written: list[str] = []
    log = Log(written.append, as_json=False)
    log.event("request", path='/a b"\n\x1b[2J', status=200, seconds=1.23456789, error=None, empty="")
    log.close()
    (line,) = written
    assert line.endswith(' request path="/a b\\"\\n\\u001b[2J" status=200 seconds=1.235 empty=""')


@pytest.mark.parametrize("as_json", [False, True])
def test_a_log_that_nobody_reads_stalls_nobody(as_json: bool) -> None:
    """Lines are dropped and counted once too many wait."""
    written: list[str] = []
    reads = threading.Event()

    def write(line: str) -> None:
        reads.wait()
        written.append(line)

    log = Log(write, as_json)
    begin = time.monotonic()
    for index in range(10_100):
        log.event("request", number=index)
    assert time.monotonic() - begin < 5
    reads.set()
    log.close(10)
    dropped = [line for line in written if "dropped" in line]
    assert len(dropped) == 1 and len(written) == 10_100 - int("".join(filter(str.isdigit, dropped[0]))) + 1


def test_a_log_whose_reader_is_gone() -> None:
    """Serving goes on without one."""

    def write(line: str) -> None:
        raise BrokenPipeError

    log = Log(write, as_json=True)
    for _ in range(11_000):
        log.event("request")
    log.close()
