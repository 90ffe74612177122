"""Tokenizer files that fail, of Rust's panics too, and those of other models: one error, and no token that is not the
prompt's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from gptoss_export.cli.text import open_text
from gptoss_export.errors import UsageError

RUST_PANICS = {
    "when it is opened": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "not a tokenizer ("),
    "when it is used": (
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "cannot make tokens of this text (chunk size must be non-zero)",
    ),
}
OPEN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from gptoss_export.cli.text import open_text
from gptoss_export.errors import UsageError
folder = Path(sys.argv[1])
model = SimpleNamespace(vocab_size=512)
runner = SimpleNamespace(folder=folder, manifest=SimpleNamespace(files={"tokenizer.json"}, model=model))
try:
    print(open_text(runner, "--prompt", False).encode("hello"))
except UsageError as error:
    print(f"error: {error}")
print("stderr is back", file=sys.stderr)
"""


def artifact(folder: Path, change: dict[str, Any], vocab_size: int = 512) -> Any:
    """Stands for a runner: a folder with the tokenizer of the tiny model, changed."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    data = json.loads(tokenizer.to_str())
    for key, value in change.items():
        data[key] = data[key] | value if isinstance(data[key], dict) and "type" not in value else value
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    manifest = SimpleNamespace(files={"tokenizer.json"}, model=SimpleNamespace(vocab_size=vocab_size))
    return SimpleNamespace(folder=folder, manifest=manifest)


@pytest.mark.parametrize("when", RUST_PANICS)
def test_a_panic_of_rust_is_one_error(tmp_path: Path, when: str) -> None:
    change, message = RUST_PANICS[when]
    runner = artifact(tmp_path, change)
    env = os.environ | {"RUST_BACKTRACE": "1"}
    done = subprocess.run([sys.executable, "-c", OPEN, tmp_path], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "stderr is back\n")
    assert done.stdout.startswith(f"error: {tmp_path}/tokenizer.json: {message}") and done.stdout.count("\n") == 1
    with pytest.raises(UsageError, match=r"tokenizer.json: "):
        text = open_text(runner, "--prompt", False)
        assert text is not None
        text.encode("hello")


def test_a_tokenizer_that_panics_is_a_note_where_no_text_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runner = artifact(tmp_path, RUST_PANICS["when it is opened"][0])
    assert open_text(runner, None, False) is None
    assert capfd.readouterr().err.startswith("note: token ids are shown, no text: ")


def test_stderr_may_be_closed(tmp_path: Path) -> None:
    artifact(tmp_path, {})
    command = f"exec {sys.executable} -c '{OPEN.replace(chr(39), chr(34))}' {tmp_path} 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("[")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_is_no_failure_of_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def interrupted(_: str) -> None:
        raise kind

    monkeypatch.setattr("tokenizers.Tokenizer", SimpleNamespace(from_str=interrupted))
    with pytest.raises(kind):
        open_text(artifact(tmp_path, {}), "--prompt", False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80abc",
        b"{}",
        b"[]",
        b'{"hello": 0}',  # a vocab.json
        b"aGVsbG8= 0\n",  # a list of tiktoken
        b"<html></html>",
        b"\x0a\x0e\x0a\x05<unk>",  # sentencepiece
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    runner = artifact(tmp_path, {})
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer.json: not a tokenizer \(") as caught:
        open_text(runner, "--prompt", False)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    text = open_text(artifact(tmp_path, {}, vocab_size=100), "--prompt", False)
    assert text is not None
    assert text.encode("a") == [64]  # 64 tokens come before it
    with pytest.raises(UsageError, match=r"makes token \d+ of this text, and the model has tokens 0 to 99; build"):
        text.encode("é")


def test_a_stored_dropout_is_not_taken_over(tmp_path: Path) -> None:
    """It would draw other tokens for one prompt in each run."""
    runner = artifact(tmp_path, {"model": {"merges": [["h", "e"]], "dropout": 1.0}})
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["vocab"]["he"] = 256
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("he").ids) == 2
    text = open_text(runner, "--prompt", False)
    assert text is not None and text.encode("he") == [256]
