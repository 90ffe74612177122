"""Commands end as on SIGPIPE where nobody reads what they print, and clean up on each signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss_export.cli.streams import ends_as_on_sigpipe

COMMAND = [sys.executable, "-m", "gptoss_export"]


def run_unread(*arguments: object, stream: str = "stdout") -> tuple[int, bytes]:
    """Run a command with `stream` closed at its other end: the exit code, and what the other stream shows."""
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    read, write = os.pipe()
    os.close(read)
    try:
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], **{stream: write, other: subprocess.PIPE})
    finally:
        os.close(write)
    shown = b"".join(part or b"" for part in process.communicate())
    return process.returncode, shown


@pytest.mark.parametrize(
    "arguments", [("targets",), ("targets", "--json"), ("--help",), ("--version",), ("run", "--help")], ids=" ".join
)
def test_stdout_that_nobody_reads(arguments: tuple[str, ...]) -> None:
    assert run_unread(*arguments) == (141, b"")


@pytest.mark.parametrize("arguments", [("run", "/missing", "--tokens", "1"), ("no-such-command",)], ids=" ".join)
def test_stderr_that_nobody_reads(arguments: tuple[str, ...]) -> None:
    assert run_unread(*arguments, stream="stderr") == (141, b"")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=" ".join)
def test_what_was_made_stays(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = tmp_path / "made"
    code, err = run_unread("make-checkpoint", folder, "--preset", "tiny", "--layers", 1, *options)
    assert code == 141
    assert b"Traceback" not in err and b"error" not in err
    assert (folder / "config.json").is_file()
    assert list(tmp_path.iterdir()) == [folder]


def test_work_whose_progress_nobody_reads_leaves_nothing_unfinished(tmp_path: Path) -> None:
    assert run_unread("make-checkpoint", tmp_path / "x", "--preset", "tiny", "--layers", 1, stream="stderr")[0] == 141
    assert [path.name for path in tmp_path.iterdir()] in ([], ["x"])


def test_a_pipe_of_somebody_else_is_an_error() -> None:
    with pytest.raises(BrokenPipeError), ends_as_on_sigpipe():
        raise BrokenPipeError


def test_a_closed_stdout_is_no_error() -> None:
    done = subprocess.run(["sh", "-c", 'exec "$0" "$@" >&-', *COMMAND, "targets"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("ignored", [False, True])
def test_signals_clean_up(tmp_path: Path, number: signal.Signals, code: int, ignored: bool) -> None:
    """A signal that the caller ignores, as nohup does, stays ignored."""
    script = (
        f"import pathlib, signal, time\nsignal.signal({number:d}, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
        "from gptoss_export.cli.errors import reports_errors\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "@reports_errors\ndef command():\n    (folder / 'started').touch()\n"
        f"    try: time.sleep(2 if {ignored} else 60)\n    finally: (folder / 'cleaned').touch()\ncommand()"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, number)
        assert process.wait(60) == (0 if ignored else code)
    finally:
        process.kill()
    assert (tmp_path / "cleaned").exists()
