"""A server of a real artifact: two hundred clients of an engine, and the command from its start to its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_server import SETTINGS
from openai import AsyncOpenAI, AuthenticationError, OpenAI
from scripted import ANALYSIS, ANSWER

from gptoss_export import Engine, SamplingParams, load
from gptoss_export.progress import Progress
from gptoss_export.server.admission import Admission
from gptoss_export.server.app import make_app
from gptoss_export.server.process import address_of, listening_socket, make_server
from gptoss_export.server.starting import Prepared

CLIENTS, NEW_TOKENS = 200, 2
ALONE = {"OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow where tests run side by side


@contextmanager
def serving(prepared: Prepared, engine: Engine) -> Iterator[str]:
    """The address of a server of the engine."""
    admission = Admission(SETTINGS)
    ready = threading.Event()
    bound = listening_socket("127.0.0.1", 0)
    app = make_app(prepared.served(engine, "tiny"), SETTINGS, admission=admission)
    server = make_server(app, admission, 0, ready.set)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        assert ready.wait(10)
        yield address_of(bound)
    finally:
        server.drain()
        thread.join(20)
        assert not thread.is_alive()


def test_two_hundred_clients_get_what_the_engine_gives(artifact: Path) -> None:
    """Each has a prompt of its own, greedy or drawn with its own seed. At a fixed width a sequence has the same bits
    alone and beside others."""
    runner = load(artifact, fixed_width=True)
    prepared = Prepared.of(runner, Progress())
    prompts = [[index % 250, (7 * index) % 250, 1 + index // 100] for index in range(CLIENTS)]
    sampling = [SamplingParams(temperature=index % 2, seed=index) for index in range(CLIENTS)]
    with Engine(runner) as engine:
        expected = engine.generate(prompts, NEW_TOKENS, sampling, stop_tokens=runner.manifest.stop_tokens)

        async def one(client: AsyncOpenAI, index: int) -> tuple[str, list[float], str]:
            completion = await client.completions.create(
                model="tiny",
                prompt=prompts[index],
                max_tokens=NEW_TOKENS,
                temperature=index % 2,
                seed=index,
                logprobs=0,
            )
            choice = completion.choices[0]
            assert choice.logprobs is not None
            return choice.text, list(map(float, choice.logprobs.token_logprobs or ())), choice.finish_reason

        async def everybody(url: str) -> list[tuple[str, list[float], str]]:
            async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
                return await asyncio.gather(*(one(client, index) for index in range(CLIENTS)))

        with serving(prepared, engine) as url:
            found = asyncio.run(everybody(url))
        text = prepared.tokenizer.text
        for result, (said, logprobs, finish) in zip(expected, found, strict=True):
            assert (said, finish) == (text.decode(result.tokens), result.finish)
            shown = [value for token, value in zip(result.tokens, result.logprobs, strict=True)
                     if not text.leaves_out(token)]  # fmt: skip
            assert logprobs == shown
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.held_pages) == (0, 0, 0) and stats.ended == 2 * CLIENTS


@pytest.fixture
def process(scripted: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`gptoss-export serve` with two keys."""
    keys = tmp_path / "keys"
    keys.write_text("key-of-the-file\n")
    command = [sys.executable, "-m", "gptoss_export", "serve", str(scripted), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--api-key-file", str(keys), "--max-new-tokens", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ALONE | {"GPTOSS_EXPORT_API_KEY": "key-of-the-environment"},
    )
    yield process
    process.kill()
    process.communicate()


def test_the_command(process: subprocess.Popen[str], scripted: Path) -> None:
    """A chat, streamed and whole, through OpenAI's client; then the signal to end."""
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["event"], ready["model"]) == ("ready", scripted.name) and ready["url"].startswith("http://127.0.0.1:")
    url = f"{ready['url']}/v1"
    with OpenAI(base_url=url, api_key="key-of-the-file", max_retries=0) as client:
        messages = [{"role": "user", "content": "Count to ten."}]
        whole = client.chat.completions.create(model=scripted.name, messages=messages)  # type: ignore[arg-type]
        message = whole.choices[0].message
        assert message.content == ANSWER and whole.choices[0].finish_reason == "stop"
        assert message.model_extra is not None and message.model_extra["reasoning_content"] == ANALYSIS
        with client.responses.stream(model=scripted.name, input="Count to ten.") as stream:
            assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == ANSWER
    with OpenAI(base_url=url, api_key="key-of-the-environment", max_retries=0) as client:
        assert client.models.list().data[0].id == scripted.name
    with OpenAI(base_url=url, api_key="another", max_retries=0) as client, pytest.raises(AuthenticationError):
        client.models.list()
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/chat/completions", 200),
        ("/v1/responses", 200),
        ("/v1/models", 200),
        ("/v1/models", 401),
    ]
    assert "load programs" in stderr and "prepare structured output" in stderr and "Traceback" not in stderr
    assert "key-of" not in stdout + stderr and "Count to" not in stdout + stderr
