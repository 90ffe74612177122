"""An engine that works, and ones that do not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gptoss_export import Engine, Runner, load
from gptoss_export.errors import RunError
from gptoss_export.replicas import engine_health
from gptoss_export.replicas.engine_health import WatchedEngine


@pytest.fixture(scope="module")
def endless_runner(endless: Path) -> Runner:
    return load(endless)


@pytest.fixture
def engine(endless_runner: Runner) -> Iterator[Engine]:
    with Engine(endless_runner) as engine:
        yield engine


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_health, "_WAIT_SECONDS", 0.5)


def test_an_idle_engine_works(engine: Engine) -> None:
    watched = WatchedEngine(engine)
    for _ in range(3):
        asyncio.run(watched.check(5))
    assert engine.stats().tokens <= 3
    assert watched.stats().ended == 0


def test_a_busy_engine_works(engine: Engine) -> None:
    """All slots are taken, and more requests wait: a check does not wait for them."""
    watched = WatchedEngine(engine)
    handles = [watched.submit([1, 2, 3], 4000) for _ in range(8)]
    next(handles[0])
    begin = time.monotonic()
    asyncio.run(watched.check(0))
    assert time.monotonic() - begin < 5
    stats = watched.stats()
    assert (stats.running, stats.ended) == (3, 0)
    for handle in handles:
        handle.cancel()


def test_an_engine_in_a_long_step(engine: Engine) -> None:
    """A check does not fail before the longest step is over, and works again after it."""
    watched, gate = WatchedEngine(engine), threading.Event()
    handle = watched.submit([1, 2, 3], 10, on_token=lambda token: gate.wait(60))
    next(handle)
    asyncio.run(watched.check(60))
    with pytest.raises(RunError, match=r"the engine took no step for 0\.1 s"):
        asyncio.run(watched.check(0.1))
    gate.set()
    handle.result()
    asyncio.run(watched.check(0.1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_without_its_thread(engine: Engine) -> None:
    """An error that is no Exception ends the thread."""

    def broken(token: object) -> None:
        raise SystemExit

    (thread,) = (each for each in threading.enumerate() if each.name == "gptoss-export engine")
    watched = WatchedEngine(engine)
    watched.submit([1, 2, 3], 5, on_token=broken)
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(RunError, match="took no step"):
        asyncio.run(watched.check(0.1))


def test_an_engine_that_fails_always(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an error of a GPU that stays."""
    watched = WatchedEngine(engine)

    def broken(*arguments: object) -> None:
        raise RuntimeError("illegal memory access")

    with monkeypatch.context() as patch:
        for name in ("prefill", "prefill_shared"):
            patch.setattr(type(engine.runner.executor), name, broken)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                watched.submit([1, 2, 3], 5).result()
        with pytest.raises(RunError, match="the engine fails: illegal memory access"):
            asyncio.run(watched.check(5))
    asyncio.run(watched.check(5))  # it works again, though the latest requests have failed
    watched.submit([1, 2, 3], 5).result()
    asyncio.run(watched.check(5))


def test_requests_that_fail_by_themselves(engine: Engine) -> None:
    """The engine is asked for a token, and gives it."""
    watched = WatchedEngine(engine)

    def no_mask(tokens: Sequence[int]) -> bytes:
        raise ValueError("no mask")

    for _ in range(4):
        with pytest.raises(ValueError, match="no mask"):
            watched.submit([1, 2, 3], 5, allowed=no_mask).result()
    before = engine.stats().tokens
    asyncio.run(watched.check(5))
    assert engine.stats().tokens == before + 1
