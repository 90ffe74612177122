"""Bad input ends with a message and exit code 2, never with a traceback. What each exit code means."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_helpers import invoke

from gptoss_export.cli.errors import reports_errors
from gptoss_export.errors import RunError
from gptoss_export.targets import TARGETS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{missing}", "--tokens", "1"], "not a folder"),
        (["run", "{artifact}"], "found none"),
        (["run", "{artifact}", "--tokens", "1", "--prompt", "x"], "--prompt and --tokens"),
        (["run", "{artifact}", "--tokens", "1,x"], "not a list of whole numbers"),
        (["run", "{artifact}", "--tokens", ""], "holds no tokens"),
        (["run", "{artifact}", "--tokens", "600"], "token 600"),
        (["run", "{artifact}", "--tokens", "1", "--temperature", "-1"], "temperature: found -1.0"),
        (["run", "{artifact}", "--tokens", "1", "--no-stop", "--stop-token", "1"], "--no-stop: found --stop-token"),
        (["run", "{artifact}", "--tokens", "1", "--save-logits", "{missing}/x"], "in a folder that exists"),
        (["inspect", "{artifact}", "--html", "{missing}/x.html"], "in a folder that exists"),
        (["inspect", "{artifact}", "--html", "{artifact}"], "found a folder"),
        (["make-checkpoint", "/proc/made", "--preset", "tiny"], "/proc"),
        (["run", "{artifact}", "--tokens-file", "{missing}"], "--tokens-file"),
        (["build", "{missing}", "-o", "{missing}"], "not a folder"),
        (["build", "{checkpoint}", "-o", "{artifact}"], "exists already"),
        (["build", "{checkpoint}", "-o", "{missing}", "--target", "abacus"], "--target abacus"),
        (["verify", "{artifact}", "--checkpoint", "{missing}"], "not a folder"),
        (["verify", "{artifact}", "--checkpoint", "{checkpoint}", "--lengths", "9999"], "expected 1 to"),
        (["bench", "{artifact}", "--batch", "9", "--context", "99999"], "--batch 9"),
        (["tune", "{checkpoint}", "-o", "{missing}", "--max-context", "16", "--prefill-chunk", "17"], "at most"),
        (["tune", "{checkpoint}", "-o", "{missing}/x"], "in a folder that exists"),
        (["inspect", "{checkpoint}"], "is no artifact"),
        (["make-checkpoint", "{missing}", "--preset", "tiny", "--layout", "original", "--experts", "bf16"], "MXFP4"),
        (["make-checkpoint", "{artifact}", "--preset", "tiny"], "exists already"),
        (["no-such-command"], "No such command"),
    ],
)
def test_bad_input(
    artifact: Path, checkpoints: dict[str, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"artifact": artifact, "checkpoint": checkpoints["hf"], "missing": tmp_path / "missing"}
    done = invoke(*(argument.format(**names) for argument in arguments))
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "missing").exists()


def test_tune_needs_a_gpu(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_export.targets.gpu.current_gpu_arch", lambda: None)
    done = invoke("tune", checkpoints["hf"], "-o", tmp_path / "tuned.json")
    assert done.exit_code == 2
    assert "torch finds no CUDA GPU here" in done.stderr
    assert not (tmp_path / "tuned.json").exists()


def exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[object, str]:
    """The exit code of a command that raises `error`, and what it prints to stderr."""

    @reports_errors
    def command() -> None:
        raise error

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as exited:
        command()
    return exited.value.code, capsys.readouterr().err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, capsys, RunError("no such slot")) == (2, "error: no such slot\n")
    code, err = exit_code(monkeypatch, capsys, OSError(28, "No space left on device", "/x"))
    assert (code, "No space left on device: '/x'" in err) == (2, True)
    assert exit_code(monkeypatch, capsys, KeyboardInterrupt()) == (130, "interrupted\n")
    code, err = exit_code(monkeypatch, capsys, ZeroDivisionError("a bug"))
    assert code == 70 and "Traceback" in err and "a bug" in err


def test_a_missing_package_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = exit_code(monkeypatch, capsys, ModuleNotFoundError("No module named 'a.b'", name="a.b"))
    assert (code, err) == (2, "error: package a is not installed; this command needs it\n")
    code, err = exit_code(monkeypatch, capsys, ModuleNotFoundError("No module named 'x'", name="gptoss_export.x"))
    assert code == 70 and "Traceback" in err


def test_targets_without_torch() -> None:
    """Lists each target and says what is missing, in a process that cannot import torch."""
    code = "import sys\nsys.modules['torch'] = None\nfrom gptoss_export.cli import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, "targets", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["targets"]
    assert [row["target"] for row in rows] == list(TARGETS)
    assert not any(row["ready"] for row in rows)
    assert all("package torch is not installed" in row["detail"] for row in rows)
    done = subprocess.run([*command, "build", "x", "-o", "y"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: package torch is not installed; this command needs it\n")


def test_usage_errors_of_click_stay_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    @reports_errors
    def command() -> None:
        raise click.BadParameter("too small")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(click.BadParameter, match="too small"):
        command()


def test_help_lists_the_exit_codes() -> None:
    lines = invoke("--help").stdout.splitlines()
    for code in ("0", "1", "2", "70", "128+n"):
        assert any(line.split()[:1] == [code] for line in lines), f"exit code {code}"


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "a", "b\x1b[31m"], "Got unexpected extra argument (b\\x1b[31m)"),
        (["run", "a", "--x\x1b[31m"], "--x\\x1b[31m"),
        (["\x1b[31m"], "No such command '\\x1b[31m'"),
        (["build", "a", "-o", "b", "--device", LONG], "'--device': 'xxx"),
        (["run", "a", "--tokens", LONG], "characters left out ...] xxx"),
        (["inspect", LONG], "File name too long: 'xxx"),
    ],
)
def test_words_of_the_command_line_are_quoted_as_text(arguments: list[str], message: str) -> None:
    """They do not steer the terminal, and not all of a long one is repeated."""
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr and "\x1b" not in done.stderr and len(done.stderr) < 9000


def test_a_link_that_leads_to_itself(artifact: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for arguments, message in (
        (["inspect", loop], "not a folder"),
        (["run", loop, "--tokens", "1"], "not a folder"),
        (["tune", loop, "-o", tmp_path / "new"], "loop"),
        (["inspect", artifact, "--html", loop], "is a link that leads to itself, expected a file or a new name"),
    ):
        done = invoke(*arguments)
        assert done.exit_code == 2 and message in done.stderr
    assert loop.is_symlink() and list(tmp_path.iterdir()) == [loop]


def test_a_name_with_a_line_break_is_no_message_of_its_own(uncompiled: Path, tmp_path: Path) -> None:
    name = "a\nerror: b"
    manifest = json.loads((uncompiled / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {name: 1}))
    for arguments in (["inspect", tmp_path], ["run", tmp_path / name, "--tokens", "1"], ["run", "a", name]):
        done = invoke(*arguments)
        assert done.exit_code == 2 and "a\n  error: b" in done.stderr
        assert len(re.findall("^error:", done.stderr, re.IGNORECASE | re.MULTILINE)) == 1


def test_a_note_quotes_no_long_name(uncompiled: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(uncompiled, tmp_path / "artifact")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"target": LONG}))
    done = invoke("inspect", folder)
    assert done.exit_code == 0 and "note: the tables of target xxx" in done.stderr and len(done.stderr) < 9000
