"""Files about text: copied where they are files, an error where something else has their name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_export.checkpoint.text_files import copy_text_files, text_files
from gptoss_export.errors import CheckpointError


def test_files_are_copied_through_links(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"a tokenizer")
    (tmp_path / "tokenizer.json").symlink_to("blob")
    (tmp_path / "chat_template.jinja").write_bytes(b"a template")
    (tmp_path / "other.json").write_bytes(b"not about text")
    output = tmp_path / "output"
    output.mkdir()
    names = text_files(tmp_path)
    copy_text_files(tmp_path, output, names)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        "tokenizer.json": b"a tokenizer",
        "chat_template.jinja": b"a template",
    }
    assert names == [Path("tokenizer.json"), Path("chat_template.jinja")]
    assert not (output / "tokenizer.json").is_symlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "tokenizer.json: found a FIFO, expected a regular file"),
        (Path.mkdir, "tokenizer.json: found a folder, expected a regular file"),
        (lambda path: path.symlink_to("nothing"), "tokenizer.json: found a link to nothing, expected a file"),
        (lambda path: path.symlink_to(path.name), "tokenizer.json: cannot be read"),
    ],
)
def test_something_else_than_a_file_is_named(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError) as caught:
        text_files(tmp_path)
    assert message in str(caught.value)
