"""Two replicas on a CPU, behind Ray Serve: each process is a real one, and so is each client."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_replicas import HEADER_TOKENS, KEY, MODEL, LiveReplicas, answer, live_replicas, processes, wait_until
from openai import APIError, AsyncOpenAI, OpenAI

pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")

BOUND = 90.0  # seconds in which every request has an end, on a machine that does much else
LONG = 400  # tokens of an answer that takes some seconds


@pytest.fixture(scope="module")
def cluster(endless: Path) -> Iterator[LiveReplicas]:
    script = Path(__file__).with_name("serve_replicas.py")
    limits = "--max-body 100000 --queue-seconds 60 --drain-seconds 60"
    with live_replicas(script, endless, *f"--replicas 2 --port 0 --model-name {MODEL} {limits}".split()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LiveReplicas) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.url}/v1", api_key=KEY, max_retries=0, timeout=BOUND) as client:
        yield client


def asked(text: str, tokens: int = 20) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}


def served_by(cluster: LiveReplicas, request: dict[str, Any]) -> str:
    """The replica that answers a request."""
    response = cluster.http.post("/v1/chat/completions", json=request)
    assert response.status_code == 200, response.text
    return response.headers["x-gptoss-replica"]


@dataclass
class Ended:
    """What became of a request. `text`: what was said; `error`: a code."""

    text: str
    error: str | None
    seconds: float
    replica: str | None = None


async def stream(client: AsyncOpenAI, text: str, tokens: int, begun: Counter[str] | None = None) -> Ended:
    """One request for a stream. begun: counts the streams that have said something, by their replicas."""
    begin, said, replica = time.monotonic(), "", None
    try:
        raw = await client.chat.completions.with_raw_response.create(**asked(text, tokens), stream=True)
        replica = raw.headers["x-gptoss-replica"]
        async for chunk in raw.parse():
            if begun is not None and not said and chunk.choices and chunk.choices[0].delta.content:
                begun[replica] += 1
            said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        error = None
    except APIError as problem:
        error = problem.code or type(problem).__name__
    return Ended(said, error, time.monotonic() - begin, replica)


def streams(cluster: LiveReplicas, texts: list[str], tokens: int = 20) -> list[Ended]:
    """Streams at the same time."""

    async def run() -> list[Ended]:
        async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=KEY, max_retries=0, timeout=BOUND) as client:
            return await asyncio.gather(*(stream(client, text, tokens) for text in texts))

    return asyncio.run(run())


def test_both_replicas_serve(cluster: LiveReplicas, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert cluster.http.get("/health").json() == {"status": "ready", "replicas": 2, "wanted": 2}
    names = {served_by(cluster, asked(f"Question {number}")) for number in range(4)}
    assert names == set(cluster.pids())


def test_the_whole_api(cluster: LiveReplicas, client: OpenAI) -> None:
    chat = client.chat.completions.create(**asked("Hi", 20), n=2)
    assert [choice.message.content for choice in chat.choices] == [answer(20)] * 2
    assert chat.usage is not None and chat.usage.completion_tokens == 40
    response = client.responses.create(model=MODEL, input="Hi", max_output_tokens=25)
    assert response.output_text == answer(25)
    events = list(client.responses.create(model=MODEL, input="Hi", max_output_tokens=25, stream=True))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert (said, events[-1].type) == (answer(25), "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = client.completions.create(model=MODEL, prompt="<|start|>assistant", max_tokens=5)
    assert text.usage is not None and text.usage.completion_tokens == 5
    assert "<html" in cluster.http.get("/").text


def test_many_streams_are_spread_and_none_is_mixed_up(cluster: LiveReplicas) -> None:
    ended = streams(cluster, [f"Question {number}" for number in range(20)], 30)
    assert [(each.text, each.error) for each in ended] == [(answer(30), None)] * 20
    assert sorted(Counter(each.replica for each in ended).values()) in ([10, 10], [9, 11], [8, 12])


def test_a_conversation_stays_with_its_replica(cluster: LiveReplicas) -> None:
    for topic in ("apples", "bread", "chairs"):
        messages = [{"role": "user", "content": f"Tell me about {topic}. " * 40}]
        reused = cluster.sum("gptoss_prompt_tokens_reused_total")
        names = []
        for turn in range(3):
            response = cluster.http.post(
                "/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 20}
            )
            names.append(response.headers["x-gptoss-replica"])
            said = response.json()["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"Go on ({turn})."}]
        assert len(set(names)) == 1, topic
        # The tokenizer of the artifact has a token for each character. Pages have 64 positions.
        assert cluster.sum("gptoss_prompt_tokens_reused_total") - reused > 2 * len(messages[0]["content"]) - 128


def test_a_client_that_goes_away_frees_its_pages(cluster: LiveReplicas) -> None:
    with cluster.http.stream("POST", "/v1/chat/completions", json={**asked("Hi", 4000), "stream": True}) as response:
        lines = response.iter_lines()  # whose end would close the connection
        next(lines)
        assert cluster.sum("gptoss_requests_running") == 1
        assert cluster.sum("gptoss_kv_pages_used") > 0
    # A health check is a request, too: it may hold pages for a moment.
    names = ("gptoss_requests_running", "gptoss_kv_pages_used", "gptoss_ingress_requests")
    wait_until(lambda: not any(map(cluster.sum, names)), 15, "no request runs, and no page is held")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, None),
        (b'{"model": "other", "messages": [{"role": "user", "content": "Hi"}]}', {}, 404, "model_not_found"),
        (b" " * 100_001, {}, 413, "request_too_large"),
        (b"{}", {"content-type": "text/plain"}, 415, None),
        (b"{}", {"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        (b"{}", {"host": "example.org"}, 403, "host_not_allowed"),
        (b"{}", {"origin": "https://example.org"}, 403, "origin_not_allowed"),
    ],
)
def test_errors(cluster: LiveReplicas, body: bytes, headers: dict[str, str], status: int, code: str | None) -> None:
    given = {"content-type": "application/json", **headers}
    response = cluster.http.post("/v1/chat/completions", content=body, headers=given)
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code


def test_what_needs_no_key(cluster: LiveReplicas) -> None:
    with httpx.Client(base_url=cluster.url, trust_env=False, verify=False) as client:
        assert client.get("/health").status_code == client.get("/").status_code == 200
        assert client.get("/metrics").status_code == client.get("/v1/models").status_code == 401


def test_a_replica_that_is_killed_is_replaced(cluster: LiveReplicas) -> None:
    """Under 20 streams. Those that it had begun end with an error, all others are answered."""
    pids, begun = cluster.pids(), Counter[str]()
    before = cluster.figures()

    async def run() -> tuple[str, list[Ended]]:
        async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=KEY, max_retries=0, timeout=BOUND) as client:
            tasks = [asyncio.create_task(stream(client, f"Question {at}", 100, begun)) for at in range(20)]
            while not begun:
                await asyncio.sleep(0.005)
            victim = next(iter(begun))
            os.kill(pids[victim], signal.SIGKILL)
            return victim, await asyncio.gather(*tasks)

    victim, ended = asyncio.run(run())
    assert max(each.seconds for each in ended) < BOUND
    errors = [each for each in ended if each.error is not None]
    assert errors, "the kill came too late"
    assert {(each.error, each.replica) for each in errors} == {("replica_lost", victim)}
    assert all(answer(100).startswith(each.text) and each.text != answer(100) for each in errors)
    assert {each.text for each in ended if each.error is None} == {answer(100)}
    after = cluster.figures()
    lost, again = (
        after[name, ""] - before[name, ""] for name in ("gptoss_ingress_lost_total", "gptoss_ingress_asked_again_total")
    )
    assert lost == len(errors)
    assert again >= 1, "no request of that replica waited"
    served_by(cluster, asked("At once"))
    cluster.wait_for_two(without=victim)
    new = (set(cluster.pids()) - set(pids)).pop()
    assert new in {each.replica for each in streams(cluster, [f"Again {at}" for at in range(6)])}


def test_a_replica_that_freezes_holds_no_request_forever(cluster: LiveReplicas) -> None:
    pids = cluster.pids()
    victim = min(pids)
    os.kill(pids[victim], signal.SIGSTOP)
    try:
        ended = streams(cluster, [f"Question {number}" for number in range(8)])
        assert [(each.text, each.error) for each in ended] == [(answer(20), None)] * 8
        assert {each.replica for each in ended} == pids.keys() - {victim}
        assert max(each.seconds for each in ended) < BOUND
        begin = time.monotonic()
        served_by(cluster, asked("Now it is known"))
        assert time.monotonic() - begin < 6, "a request waited for a replica that is known to be silent"
    finally:
        with suppress(ProcessLookupError):  # Ray may have ended it by now
            os.kill(pids[victim], signal.SIGKILL)
    cluster.wait_for_two(without=victim)


def test_the_end(cluster: LiveReplicas) -> None:
    """A stream that runs is finished, new requests are refused, and no process is left."""
    assert len(processes(cluster.mark)) >= 8
    with ThreadPoolExecutor(1) as pool:
        before = cluster.sum("gptoss_generated_tokens_total")
        running = pool.submit(streams, cluster, ["Hi"], LONG)
        wait_until(lambda: cluster.sum("gptoss_generated_tokens_total") > before + HEADER_TOKENS, BOUND, "it runs")
        cluster.process.send_signal(signal.SIGTERM)
        wait_until(lambda: cluster.http.get("/health").status_code == 503, 30, "it drains")
        refused = cluster.http.post("/v1/chat/completions", json=asked("Too late"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_ending")
        (ended,) = running.result(BOUND)
        assert (ended.text, ended.error) == (answer(LONG), None)
    assert cluster.process.wait(60) == 0
    wait_until(lambda: not processes(cluster.mark), 30, "all processes have ended")
