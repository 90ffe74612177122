"""What happens to all ranks when one of them dies, hangs or cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rank_artifacts import ended_afterwards, is_running, other_ranks, wait_for_end

from gptoss_export import Engine, Runner, load
from gptoss_export.errors import GptOssExportError, RunError
from gptoss_export.ranks.leading import LeadingExecutor

pytestmark = pytest.mark.usefixtures("no_ranks_are_left")
ENDLESS = 4000  # tokens: more than a test waits for
LOADS = """
import sys, gptoss_export
runner = gptoss_export.load(sys.argv[1])
print("loaded", flush=True)
runner.generate([1, 2, 3], 4000, stop_tokens=())
"""


def generating(runner: Runner) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that generates, and the error that ends it."""
    errors: list[BaseException] = []

    def generate() -> None:
        try:
            runner.generate([1, 2, 3], ENDLESS, stop_tokens=())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    return thread, errors


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_dies_ends_all(of_two: Path, kind: signal.Signals) -> None:
    runner = load(of_two / "artifact")
    (pid,) = other_ranks()
    thread, errors = generating(runner)
    time.sleep(0.5)
    os.kill(pid, kind)
    thread.join(10)
    assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, RunError)
    assert f"rank 1 of 2 (process {pid}) was ended by {kind.name}" in str(error)
    assert "all ranks have ended: load the artifact again" in str(error)
    with pytest.raises(RunError, match=f"was ended by {kind.name}"):
        runner.generate([1], 1)


def test_a_rank_that_hangs_ends_all(of_four: Path) -> None:
    runner = load(of_four / "artifact")
    pids = other_ranks()
    with ended_afterwards(pids):
        thread, errors = generating(runner)
        time.sleep(0.5)
        os.kill(pids[1], signal.SIGSTOP)
        begin = time.monotonic()
        thread.join(20)
        assert not thread.is_alive() and time.monotonic() - begin < 10
        assert isinstance(errors[0], RunError) and "rank 2 of 4 did not answer for 7 s" in str(errors[0])
        wait_for_end(pids, 2)


def test_an_interrupted_call_ends_all(of_two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has done what this one has not: the next answer would be wrong."""
    runner = load(of_two / "artifact")

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    executor = runner.executor
    assert isinstance(executor, LeadingExecutor)
    monkeypatch.setattr(executor._executor, "prefill_shared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.generate([1, 2], 3)
    monkeypatch.undo()
    with pytest.raises(RunError, match="rank 0 of 2 was interrupted in the middle of a call"):
        runner.generate([1, 2], 3)


def test_requests_of_an_engine_fail_with_the_reason(of_two: Path) -> None:
    runner = load(of_two / "artifact")
    (pid,) = other_ranks()
    with Engine(runner) as engine:
        handles = [engine.submit([1, 2, 3], ENDLESS, stop_tokens=()) for _ in range(3)]
        next(iter(handles[0]))
        os.kill(pid, signal.SIGKILL)
        for handle in handles:
            with pytest.raises(RunError, match="was ended by SIGKILL"):
                handle.result()


def test_ranks_end_with_rank_0(of_two: Path) -> None:
    command = [sys.executable, "-c", LOADS, str(of_two / "artifact")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "loaded\n"
    others = other_ranks(process.pid)
    assert len(others) == 1
    with ended_afterwards(others):
        process.kill()
        process.wait()
        wait_for_end(others, 10)


def test_ranks_end_when_the_runner_is_dropped(of_two: Path) -> None:
    runner = load(of_two / "artifact")
    (pid,) = other_ranks()
    assert is_running(pid)
    del runner
    wait_for_end([pid], 10)
    load(of_two / "artifact").generate([1], 2, stop_tokens=())  # and others can be loaded


def test_two_such_artifacts_in_a_process(of_two: Path) -> None:
    runner = load(of_two / "artifact")
    with pytest.raises(RunError, match="has loaded an artifact of several ranks already; drop its runner"):
        load(of_two / "artifact")
    assert len(runner.generate([1, 2], 3, stop_tokens=()).tokens) == 3


def test_a_rank_that_cannot_start(of_two: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    begin = time.monotonic()
    with pytest.raises(GptOssExportError, match=r"rank 1 of 2 \(process \d+\) ended with exit code 7"):
        load(of_two / "artifact")
    assert time.monotonic() - begin < 10
    wait_for_end(other_ranks())


def test_a_rank_that_cannot_load(of_two: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = tmp_path / "refuses.py"
    code.write_text(
        "import sys\n"
        "from gptoss_export import rank_worker\n"
        "from gptoss_export.errors import ArtifactError\n"
        "def refuse(*given):\n"
        "    raise ArtifactError('this rank has no weights')\n"
        "rank_worker.load_rank = refuse\n"
        "rank_worker.main(int(sys.argv[1]))\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$3"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(GptOssExportError, match="rank 1 of 2 this rank has no weights; all ranks have ended"):
        load(of_two / "artifact")
    wait_for_end(other_ranks())


def test_a_damaged_artifact_starts_no_rank(uncompiled: Path) -> None:
    """All checks come before."""
    with pytest.raises(GptOssExportError):
        load(uncompiled)
    assert other_ranks() == []
