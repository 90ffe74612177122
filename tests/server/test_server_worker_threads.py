"""The threads in which requests are read."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from gptoss_export.server.worker_threads import WorkerThreads


def test_results_and_errors() -> None:
    threads = WorkerThreads(2, "test")
    assert threads.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(10)
    assert threads.submit(int, "5").result(10) == 5


def test_several_work_at_a_time() -> None:
    threads, all_of_them = WorkerThreads(3, "test"), threading.Barrier(3)
    assert not threads.busy
    futures = [threads.submit(all_of_them.wait, 10) for _ in range(3)]
    assert {future.result(10) for future in futures} == {0, 1, 2}
    while threads.busy:
        time.sleep(0.001)


def test_cancelled_work_is_left_out() -> None:
    threads, over, done = WorkerThreads(1, "test"), threading.Event(), []
    first = threads.submit(over.wait, 10)
    while not threads.busy:
        time.sleep(0.001)
    second, third = threads.submit(done.append, 2), threads.submit(done.append, 3)
    assert second.cancel()
    over.set()
    third.result(10)
    assert first.result(10) and done == [3]


def test_nothing_stays_of_work() -> None:
    class Body:
        pass

    body = Body()
    left = weakref.ref(body)
    threads = WorkerThreads(1, "test")
    threads.submit(id, body).result(10)
    del body
    while threads.busy:
        time.sleep(0.001)
    gc.collect()
    assert left() is None


def test_the_end_of_the_process_does_not_wait() -> None:
    """It ends with its exit code, also where the thread is in a library of Rust."""
    program = (
        "import time\n"
        "from gptoss_export.server.process import leave\n"
        "from gptoss_export.server.worker_threads import READING\n"
        "from scripted_engine import harmony_tokenizer\n"
        "tokenizer = harmony_tokenizer()\n"
        "def work():\n"
        "    while True:\n"
        "        tokenizer.encode('the words ' * 2000)\n"
        "READING.submit(work)\n"
        "time.sleep(0.3)\n"
        "print('last words')\n"
        "leave(7)\n"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "last words\n"), done.stderr
    assert time.monotonic() - begin < 30
