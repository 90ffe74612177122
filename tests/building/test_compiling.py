"""Programs compiled side by side in processes: the same code as one after the other, and clear ends of what fails."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from artifacts import TWO_LAYERS
from gptoss_export import BuildOptions
from gptoss_export.artifact.programs import Prefill, Sizes, Unembed
from gptoss_export.build_options import resolve
from gptoss_export.compiling import ProgramTask, WorkerSettings, compile_side_by_side, default_jobs
from gptoss_export.errors import BuildError

OPTIONS: dict[str, Any] = {"max_batch": 1, "max_context": 64, "prefill_chunks": (16,)}


def ignored(_: str) -> None: ...


def given() -> WorkerSettings:
    _, settings, _ = resolve(BuildOptions("aoti", "cpu", **OPTIONS))
    return WorkerSettings(settings, ())


def tasks(folder: Path, *programs: Any) -> list[ProgramTask]:
    arch = given().settings.archs[0]
    found = [ProgramTask(program, TWO_LAYERS, arch, arch, folder / program.name) for program in programs]
    for task in found:
        task.folder.mkdir()
    return found


@pytest.mark.usefixtures("compiles_anew")
def test_two_processes_make_the_code_of_one(tmp_path: Path) -> None:
    """Whichever process compiled which program: the names of the files are hashes of the code and of its flags."""
    programs = Prefill(16), Unembed(1), Unembed(64)
    made = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        compile_side_by_side(given(), tasks(folder, *programs), jobs, ignored)
        made.append(
            {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        )
    assert made[0] == made[1]
    assert sum(name.endswith(".so") for name in made[0]) == len(programs)


def test_the_error_of_a_program_reaches_the_build(tmp_path: Path) -> None:
    right = given()
    wrong = dataclasses.replace(right, settings=dataclasses.replace(right.settings, dtype="float99"))
    with pytest.raises(BuildError, match=r"(?s)program unembed_1 for .*dtype: found 'float99'.*Traceback"):
        compile_side_by_side(wrong, tasks(tmp_path, Unembed(1)), 1, ignored)


def test_a_process_that_is_killed_ends_the_build(tmp_path: Path) -> None:
    """As the system does it where memory is short. The other processes are stopped."""
    killed: list[int] = []

    def kill(_: str) -> None:
        if not killed and (found := workers()):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    with pytest.raises(BuildError, match=r"was killed, perhaps for want of memory; .*--jobs"):
        compile_side_by_side(given(), tasks(tmp_path, Prefill(16), Prefill(32)), 2, kill)
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert killed and not workers()


def test_a_process_that_cannot_start_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BuildError, match=r"process that compile.* ended with code 1"):
        compile_side_by_side(given(), tasks(tmp_path, Unembed(1)), 1, ignored)


def workers() -> list[int]:
    """The processes that compile for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"gptoss_export.compile_worker" in command and parent == os.getpid():
            found.append(int(path.name))
    return found


def test_default_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_export import compiling

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for memory, expected in ((None, 9), (64 << 30, 9), (9 << 30, 4), (1 << 30, 1)):
        monkeypatch.setattr(compiling, "_available_memory", lambda memory=memory: memory)
        assert default_jobs(9) == expected
    monkeypatch.setattr(compiling, "_available_memory", lambda: 64 << 30)
    assert default_jobs(99) == 16 and default_jobs(1) == 1


def test_sizes_reach_the_workers() -> None:
    assert given().settings.sizes == Sizes((1,), 64, (16,))
