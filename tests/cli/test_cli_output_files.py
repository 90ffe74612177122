"""An output path that is no file is one error before anything is computed, and stays what it is."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from cli_helpers import invoke

from gptoss_export.cli.params import check_new_file
from gptoss_export.cli.run import _save
from gptoss_export.errors import UsageError

COMMANDS = {
    "inspect": ["inspect", "{missing}", "--html", "{output}"],
    "verify": ["verify", "{missing}", "--checkpoint", "{missing}", "--html", "{output}"],
    "bench": ["bench", "{missing}", "--html", "{output}"],
    "run": ["run", "{missing}", "--tokens", "1", "--save-logits", "{output}"],
    "tune": ["tune", "{missing}", "--output", "{output}"],
}
KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a device": (lambda path: path.symlink_to("/dev/null"), "found a device"),
    "a pipe": (os.mkfifo, "found a device, a pipe"),
    "a folder": (Path.mkdir, "found a folder"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_no_file(tmp_path: Path, command: str, kind: str) -> None:
    make, message = KINDS[kind]
    output = tmp_path / "output"
    make(output)
    before = output.lstat()
    names = {"missing": tmp_path / "missing", "output": output}
    done = invoke(*(part.format(**names) for part in COMMANDS[command]))
    assert (done.exit_code, done.stdout) == (2, "")
    option = COMMANDS[command][-2]
    assert re.fullmatch(rf"error: {option} {output}: {message}.*\n", done.stderr), done.stderr
    assert (output.lstat().st_ino, output.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("way", ["{folder}/manifest.json", "{folder}/weights/../new", "{link}/manifest.json"])
def test_an_output_in_a_folder_that_is_read(tmp_path: Path, command: str, way: str) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    (folder / "weights").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    link.symlink_to(folder)
    output = way.format(folder=folder, link=link)
    done = invoke(*(word.format(missing=folder, output=output) for word in COMMANDS[command]))
    assert done.exit_code == 2 and "which the command reads; name a file outside of it" in done.stderr, done.stderr
    assert (folder / "manifest.json").read_text() == "{}" and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_devices_by_name(path: str) -> None:
    with pytest.raises(UsageError, match=f"--html {path}: found a"):
        check_new_file("--html", Path(path))


def test_a_file_is_replaced_and_a_new_one_made(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    for name in ("old", "new"):
        check_new_file("--html", tmp_path / name)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may do everything
    with pytest.raises(UsageError, match=r"--html .*x: no permission"):
        check_new_file("--html", tmp_path / "x")


@pytest.mark.parametrize(
    "command", [["build", "{missing}", "-o"], ["make-checkpoint", "--preset", "tiny"]], ids=" ".join
)
def test_a_link_to_nothing_is_no_name_for_a_new_folder(
    checkpoints: dict[str, Path], tmp_path: Path, command: list[str]
) -> None:
    output = tmp_path / "output"
    output.symlink_to(tmp_path / "nothing")
    done = invoke(*(part.format(missing=checkpoints["hf"]) for part in command), output)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{output}: exists already" in done.stderr
    assert output.is_symlink() and list(tmp_path.iterdir()) == [output]


def test_logits_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "logits"
    with pytest.raises(UsageError, match=f"--save-logits {path}: cannot be written .*No such file"):
        _save([numpy.zeros(4, numpy.float32)], path)
