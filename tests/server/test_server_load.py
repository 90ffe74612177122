"""Two hundred clients at once: each gets its own answer, and nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import httpx
from live_server import MODEL, Live, serving
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from scripted_engine import ScriptedEngine, answer, said

from gptoss_export.runtime.request_handle import RequestHandle
from gptoss_export.server.generating import RunningAnswer
from gptoss_export.server.record import Record

CLIENTS = 200


def script(prompt: str) -> str:
    """Repeats what the user said, and how long the prompt was."""
    if "<|start|>" not in prompt:
        return f"{prompt[::-1]}<|return|>"
    return answer(f"{said(prompt)} ({len(prompt)})", "Hm.")


async def one(client: AsyncOpenAI, index: int) -> str:
    """Ask one question in one of six ways; returns the answer's text."""
    question: str = f"question {index} " + "x" * (index % 7)
    messages: Any = [{"role": "user", "content": question}]
    way = index % 6
    if way == 0:
        completion = await client.chat.completions.create(model=MODEL, messages=messages)
        return completion.choices[0].message.content or ""
    if way == 1:
        chunks = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    if way == 2:
        return (await client.responses.create(model=MODEL, input=question)).output_text
    if way == 3:
        events = await client.responses.create(model=MODEL, input=question, stream=True)
        return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])
    if way == 4:
        return (await client.completions.create(model=MODEL, prompt=question, max_tokens=100)).choices[0].text
    completion = await client.chat.completions.create(model=MODEL, messages=messages, n=2)
    first, second = (choice.message.content or "" for choice in completion.choices)
    assert first == second
    return first


def expected(index: int, answer: str) -> bool:
    question = f"question {index} " + "x" * (index % 7)
    return answer == question[::-1] if index % 6 == 4 else answer.startswith(f"{question} (")


async def wave(live: Live) -> list[str]:
    """All clients at once, each with a connection of its own."""
    http = DefaultAsyncHttpxClient(limits=httpx.Limits(max_connections=CLIENTS))
    async with AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=60, http_client=http
    ) as client:
        return await asyncio.gather(*(one(client, index) for index in range(CLIENTS)))


def left() -> int:
    """How much that belongs to a request is still there, in the whole process."""
    gc.collect()
    return sum(isinstance(each, RequestHandle | RunningAnswer | Record) for each in gc.get_objects())


def test_two_hundred_clients() -> None:
    """More than the engine runs at a time. A second wave needs no more memory than the first."""
    others = left()
    with serving(ScriptedEngine(script, slots=64)) as live:
        for index, text in enumerate(asyncio.run(wave(live))):
            assert expected(index, text), (index, text)
        assert len(live.engine.requests) == CLIENTS + CLIENTS // 6
        assert live.admission.running == 0
        live.engine.wait_until(lambda stats: stats.running == stats.waiting == stats.held_pages == 0)
        assert left() <= others
        live.engine.requests.clear()
        live.lines.clear()
        before = sys.getallocatedblocks()
        asyncio.run(wave(live))
        assert left() <= others
        live.engine.requests.clear()
        live.lines.clear()
        gc.collect()
        assert sys.getallocatedblocks() - before < 20_000  # a request that stayed would be hundreds


def test_more_clients_than_the_server_takes() -> None:
    """Those that are refused are told so; the others get their answers."""
    with serving(ScriptedEngine(script, step_seconds=0.01), max_requests=50) as live:

        async def status(client: AsyncOpenAI, index: int) -> int:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": f"question {index}"}]
            )
            assert raw.parse().choices[0].message.content.startswith(f"question {index} (")  # type: ignore[union-attr]
            return raw.status_code

        async def all_of_them() -> list[int]:
            async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
                results = await asyncio.gather(
                    *(status(client, index) for index in range(CLIENTS)), return_exceptions=True
                )
            return [result if isinstance(result, int) else getattr(result, "status_code", 0) for result in results]

        found = asyncio.run(all_of_them())
        assert set(found) == {200, 429} and found.count(200) >= 50
        live.works()
