"""Streams that other threads read, close or collect as garbage: nobody's sequence changes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_generation import Scripted
from test_runner_checks import DRAWN, Waiting, runner_of

from gptoss_export import Runner
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import RunError


def in_a_thread(call: Callable[[], object]) -> object:
    """What the call returns or raises in a thread of its own."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # the test looks at it
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


overlapping = pytest.mark.parametrize("overlaps", [False, True], ids=["waits", "overlaps"])


@overlapping
def test_a_stream_goes_on_in_another_thread(uncompiled: Path, overlaps: bool) -> None:
    stream = runner_of(uncompiled, overlaps=overlaps).stream([1], 5, stop_tokens=())
    found = [next(stream).id, in_a_thread(lambda: next(stream).id), next(stream).id]
    assert [*found, *(token.id for token in stream)] == DRAWN


@overlapping
def test_a_stream_that_another_thread_closes_ends(uncompiled: Path, overlaps: bool) -> None:
    runner = runner_of(uncompiled, overlaps=overlaps)
    stream: Any = runner.stream([1, 2], 5, stop_tokens=())
    next(stream), next(stream)
    assert in_a_thread(stream.close) is None
    assert list(stream) == [] and runner.length() == 3  # the prompt and the first token


@overlapping
@pytest.mark.parametrize("end", ["close", "collect"])
def test_the_end_of_a_stream_changes_no_slot(uncompiled: Path, overlaps: bool, end: str) -> None:
    """The garbage collector may find it between any two lines of another thread's call. That call rolls back."""
    runner = runner_of(uncompiled, overlaps=overlaps)
    slots: Any = runner.slots
    stream: Any = runner.stream([1, 2, 3], 5, stop_tokens=())
    next(stream)
    before = (slots.epoch, slots.lengths(), set(slots.speculated))
    assert before[1:] == ([4, 0, 0], {0}) if overlaps else ([3, 0, 0], set())
    if end == "close":
        stream.close()
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    assert (slots.epoch, slots.lengths(), set(slots.speculated)) == before and runner.length() == 3
    runner.truncate(2)
    assert slots.lengths() == [2, 0, 0] and slots.speculated == set()


def test_a_stream_that_runs_cannot_be_closed_or_read_by_another_thread(uncompiled: Path) -> None:
    runner = runner_of(uncompiled, Waiting)
    executor: Any = runner.executor
    stream: Any = runner.stream([1], 4, stop_tokens=())
    assert next(stream).id == DRAWN[0]
    results: list[int] = []
    first = threading.Thread(target=lambda: results.append(next(stream).id))
    first.start()
    assert executor.entered.wait(60)
    try:
        for call in (stream.close, lambda: next(stream), lambda: runner.prefill([1])):
            with pytest.raises(RunError, match="another thread is in a call of this runner"):
                call()
    finally:
        executor.go.set()
        first.join(60)
    assert results == DRAWN[1:2]
    assert [token.id for token in stream] == DRAWN[2:4]  # it was refused, and has not ended


def test_closing_a_stream_while_another_call_runs_is_allowed(uncompiled: Path) -> None:
    runner = runner_of(uncompiled, Waiting)
    executor: Any = runner.executor
    old: Any = runner.stream([1], 4, stop_tokens=())
    executor.go.set()
    next(old)
    executor.go.clear()
    executor.entered.clear()
    results: list[list[int]] = []
    first = threading.Thread(target=lambda: results.append(runner.generate([1], 3, stop_tokens=()).tokens))
    first.start()
    assert executor.entered.wait(60)
    old.close()
    executor.go.set()
    first.join(60)
    assert results == [DRAWN[1:4]]


@pytest.mark.parametrize("closed", [False, True])
def test_many_threads_leave_streams_unfinished(uncompiled: Path, closed: bool) -> None:
    """Each thread takes a stream, leaves it after two tokens, and the next call counts from nothing again."""
    manifest = load_manifest(uncompiled)
    executor = Scripted([[*range(500)]] * manifest.sizes.max_batch, True, manifest.sizes.max_context)
    runner = Runner(manifest, uncompiled, executor, {})
    problems: list[object] = []

    def leave() -> None:
        for _ in range(20):
            try:
                stream: Any = runner.stream([1, 2], 4, stop_tokens=())
                next(stream), next(stream)
                if closed:
                    stream.close()
            except RunError as error:
                if "another" not in str(error):
                    problems.append(error)
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    gc.collect()
    runner.reset()
    slots: Any = runner.slots
    assert slots.lengths() == [0, 0, 0] and slots.speculated == set()
    runner.prefill([1, 2, 3])
    assert runner.length() == 3
