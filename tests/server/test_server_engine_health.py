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
from gptoss_export.server.engine_health import WatchedEngine


@pytest.fixture(scope="module")
def endless_runner(endless: Path) -> Runner:
    return load(endless)


@pytest.fixture
def engine(endless_runner: Runner) -> Iterator[Engine]:
    with Engine(endless_runner) as engine:
        yield engine


def test_an_idle_engine_works(engine: Engine) -> None:
    watched = WatchedEngine(engine, 5)
    for _ in range(3):
        asyncio.run(watched.check())
    assert engine.stats().tokens <= 3
    assert watched.stats().ended == 0


def test_a_busy_engine_works(engine: Engine) -> None:
    """All slots are taken, and more requests wait: a check does not wait for them."""
    watched = WatchedEngine(engine, 0)
    handles = [watched.submit([1, 2, 3], 4000) for _ in range(8)]
    next(handles[0])
    begin = time.monotonic()
    asyncio.run(watched.check())
    assert time.monotonic() - begin < 5
    stats = watched.stats()
    assert (stats.running, stats.ended) == (3, 0)
    for handle in handles:
        handle.cancel()


def test_an_engine_in_a_long_step(engine: Engine) -> None:
    """A check does not fail before the longest step is over, and works again after it."""
    watched, gate = WatchedEngine(engine, 60), threading.Event()
    handle = watched.submit([1, 2, 3], 10, on_token=lambda token: gate.wait(60))
    next(handle)
    begin = time.monotonic()
    asyncio.run(watched.check())
    assert time.monotonic() - begin < 1, "who asks often gives up after a second"
    watched.longest_step = 0.1
    with pytest.raises(RunError, match=r"the engine took no step for 0\.1 s"):
        asyncio.run(watched.check())
    gate.set()
    handle.result()
    asyncio.run(watched.check())


def test_many_who_ask_at_once(engine: Engine) -> None:
    """They share one request of the engine."""
    watched, gate = WatchedEngine(engine, 60), threading.Event()
    handle = watched.submit([1, 2, 3], 2, on_token=lambda token: gate.wait(60))
    next(handle)

    async def ask() -> None:
        asking = [asyncio.create_task(watched.check()) for _ in range(50)]
        await asyncio.sleep(0.1)
        assert engine.stats().waiting <= 1
        asking[0].cancel()
        gate.set()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError) and outcomes[1:] == [None] * 49

    asyncio.run(ask())
    handle.result()
    assert watched.stats().ended == 1 and engine.stats().ended == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_without_its_thread(engine: Engine) -> None:
    """An error that is no Exception ends the thread."""

    def broken(token: object) -> None:
        raise SystemExit

    (thread,) = (each for each in threading.enumerate() if each.name == "gptoss-export engine")
    watched = WatchedEngine(engine, 0.1)
    watched.submit([1, 2, 3], 5, on_token=broken)
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(RunError, match="took no step"):
        asyncio.run(watched.check())


def test_an_engine_that_fails_always(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an error of a GPU that stays."""
    watched = WatchedEngine(engine, 5)

    def broken(*arguments: object) -> None:
        raise RuntimeError("illegal memory access")

    with monkeypatch.context() as patch:
        for name in ("prefill", "prefill_shared"):
            patch.setattr(type(engine.runner.executor), name, broken)
        with pytest.raises(RuntimeError):
            watched.submit([1, 2, 3], 5).result()
        for _ in range(3):
            with pytest.raises(RunError, match="the engine fails: illegal memory access"):
                asyncio.run(watched.check())
    asyncio.run(watched.check())  # it works again, though the latest requests have failed
    watched.submit([1, 2, 3], 5).result()
    asyncio.run(watched.check())


def test_requests_that_fail_by_themselves(engine: Engine) -> None:
    """The engine is asked for a token, and gives it."""
    watched = WatchedEngine(engine, 5)

    def no_mask(tokens: Sequence[int]) -> bytes:
        raise ValueError("no mask")

    for _ in range(4):
        with pytest.raises(ValueError, match="no mask"):
            watched.submit([1, 2, 3], 5, allowed=no_mask).result()
    before = engine.stats().tokens
    asyncio.run(watched.check())
    assert engine.stats().tokens == before + 1
