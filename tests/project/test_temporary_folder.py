"""Temporary folders: removed by their process, and by the next one where their process was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_export import temporary_folder
from gptoss_export.errors import RunError
from gptoss_export.temporary_folder import LOCK, TemporaryFolder, check_executable, remove_leftovers

# Makes a folder with something in it, says so, and waits to be killed.
HOLD = """
import sys
from pathlib import Path
from gptoss_export.temporary_folder import TemporaryFolder
folder = TemporaryFolder(Path(sys.argv[1]), *sys.argv[2:])
(folder.path / "folder").mkdir()
(folder.path / "folder" / "file").touch()
(folder.path / "link").symlink_to(sys.argv[1])
print(folder.path.name, flush=True)
sys.stdin.read()
"""


def hold(parent: Path, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", HOLD, str(parent), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, parent / process.stdout.readline().strip()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_lives_as_long_as_it_is_used(tmp_path: Path) -> None:
    with TemporaryFolder(tmp_path) as folder:
        (folder.path / "file").touch()
        assert folder.path.parent == tmp_path and folder.path.name.startswith("gptoss-export-")
        assert folder.path.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == []
    dropped = TemporaryFolder(tmp_path)
    assert len(names(tmp_path)) == 1
    del dropped
    assert names(tmp_path) == []
    kept = TemporaryFolder(tmp_path)
    kept.rename(tmp_path / "kept")
    del kept
    assert names(tmp_path) == ["kept"] and names(tmp_path / "kept") == []


def test_it_is_made_in_the_folder_that_tmpdir_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TemporaryFolder() as folder:
        assert folder.path.parent == tmp_path


@pytest.mark.parametrize("arguments", [(), (".out-", ".partial")], ids=["temporary", "partial"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    killed, left = hold(tmp_path, *arguments)
    living, used = hold(tmp_path, *arguments)
    assert names(tmp_path) == sorted([left.name, used.name])
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    with TemporaryFolder(tmp_path) as folder:
        assert names(tmp_path) == sorted([used.name, folder.path.name])
        assert (used / "folder" / "file").exists()
    living.communicate("")
    assert living.returncode == 0 and names(tmp_path) == []


@pytest.mark.parametrize(
    "name, lock",
    [
        ("gptoss-export-abcdefgh", None),  # nothing says that it is a temporary folder of this project
        ("gptoss-export-abcdefgh", "folder"),
        ("gptoss-export-abcdefgh", "link"),
        ("gptoss-export-mine", "file"),
        ("gptoss-export-abcdefgh.partial", "file"),
        ("abcdefgh.partial", "file"),
        (".out-abcdefgh", "file"),
    ],
)
def test_folders_that_are_not_surely_left_over_stay(tmp_path: Path, name: str, lock: str | None) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "content").write_text(temporary_folder._boot())
    if lock == "file":
        (folder / LOCK).write_text(temporary_folder._boot())
    elif lock == "folder":
        (folder / LOCK).mkdir()
    elif lock == "link":
        (folder / LOCK).symlink_to("content")
    (tmp_path / "gptoss-export-12345678").symlink_to(folder)
    remove_leftovers(tmp_path)
    assert (folder / "content").exists() and (tmp_path / "gptoss-export-12345678").is_symlink()


def leftover(parent: Path) -> Path:
    folder = parent / "gptoss-export-abcdefgh"
    folder.mkdir()
    (folder / LOCK).write_text(temporary_folder._boot())
    return folder


def test_folders_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leftover(tmp_path)
    user = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: user + 1)
        remove_leftovers(tmp_path)
        assert folder.exists()
    remove_leftovers(tmp_path)
    assert not folder.exists()


def test_folders_of_other_machines_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several machines share a file system, a lock may not be seen. A disk has one machine."""
    folder = leftover(tmp_path)
    (folder / LOCK).write_text("another start")
    for major, exists in ((0, True), (8, False)):
        monkeypatch.setattr(os, "major", lambda device, major=major: major)
        remove_leftovers(tmp_path)
        assert folder.exists() == exists


def test_a_forked_process_leaves_the_folder_to_its_parent(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from gptoss_export.temporary_folder import TemporaryFolder
folder = TemporaryFolder(Path({str(tmp_path)!r}))
if os.fork() == 0:
    raise SystemExit
os.wait()
assert folder.path.exists()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert names(tmp_path) == []


def test_a_folder_that_is_taken_for_a_leftover_at_its_birth_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of the lock file and its lock, another process may find it free."""
    lock, calls = fcntl.flock, []

    def too_late(file: int, operation: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            raise BlockingIOError(errno.EAGAIN, "locked by another process")
        if len(calls) == 2:
            (found[-1] / LOCK).unlink()
        lock(file, operation)

    found: list[Path] = []
    make = temporary_folder.tempfile.mkdtemp

    def noted(**options: Any) -> str:
        found.append(Path(make(**options)))
        return str(found[-1])

    monkeypatch.setattr(temporary_folder.tempfile, "mkdtemp", noted)
    monkeypatch.setattr(fcntl, "flock", too_late)
    with TemporaryFolder(tmp_path) as folder:
        assert folder.path == found[2] and names(tmp_path) == [folder.path.name]


def test_a_file_system_without_locks_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with TemporaryFolder(tmp_path) as folder:
        assert names(folder.path) == []  # without a lock file, it is never taken for a leftover
    assert names(tmp_path) == []


def test_code_in_a_folder_that_is_mounted_noexec_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_executable(tmp_path, RunError)
    found = SimpleNamespace(f_flag=os.statvfs(tmp_path).f_flag | os.ST_NOEXEC)
    monkeypatch.setattr(os, "statvfs", lambda folder: found if folder == tmp_path else None)
    with pytest.raises(RunError) as refused:
        check_executable(tmp_path, RunError)
    assert str(refused.value) == (
        f"{tmp_path}: its file system is mounted noexec, expected one that code can be loaded from; "
        "set TMPDIR to a folder on another file system"
    )
