"""Text goes in and comes out as it is, whatever bytes, locale and tokenizer file a user has."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_helpers import invoke
from click.testing import CliRunner, Result
from tokenizers import Tokenizer

from gptoss_export import Generation, Token
from gptoss_export.cli import main

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 27868174\n"
COMMAND = [sys.executable, "-m", "gptoss_export"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([b"run", b"x", b"--prompt", b"caf\xe9"], r"--prompt caf\xe9: found text that is not UTF-8"),
        ([b"run", b"x", b"--prompt=caf\xe9"], r"--prompt=caf\xe9: found text that is not UTF-8"),
        ([b"run", b"\xff", b"--tokens", b"1"], r"Error: \xff: found text that is not UTF-8"),
        ([b"build", b"x", b"-o", b"\xe9"], r"\xe9: found text that is not UTF-8"),
        ([b"verify", b"x", b"--checkpoint", b"y", b"--html", b"\xe9"], r"--html \xe9: found text that is not UTF-8"),
    ],
)
def test_arguments_that_are_not_utf8(arguments: list[bytes], message: str) -> None:
    done = subprocess.run([*map(os.fsencode, COMMAND), *arguments], capture_output=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@dataclass
class EchoRunner:
    """Stands for a loaded artifact: remembers its prompt, and "generates" the tokens that a test gives it."""

    folder: Path
    tokens: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    load_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def manifest(self) -> Any:
        files = {path.name for path in self.folder.iterdir()}
        return SimpleNamespace(files=files, model=SimpleNamespace(vocab_size=1000))

    def stream(self, prompt: list[int], *_: object) -> Iterator[Token]:
        self.prompt = prompt
        return (Token(0, token, -1.0) for token in self.tokens)

    def generate(self, prompt: list[int], *_: object, **__: object) -> Generation:
        self.prompt = prompt
        return Generation(prompt, self.tokens, [-1.0] * len(self.tokens))


@pytest.fixture
def runner(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EchoRunner:
    """A folder with a tokenizer, in place of an artifact."""
    content = (checkpoints["hf"] / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    found = EchoRunner(tmp_path)
    monkeypatch.setattr("gptoss_export.loading.load", lambda *_, **__: found)
    return found


def tokenizer_of(runner: EchoRunner) -> Tokenizer:
    return Tokenizer.from_file(str(runner.folder / "tokenizer.json"))


def run(runner: EchoRunner, *options: object) -> Result:
    return invoke("run", runner.folder, *options)


def test_stored_truncation_and_padding_are_not_taken_over(runner: EchoRunner) -> None:
    tokenizer = tokenizer_of(runner)
    whole = tokenizer.encode("a long prompt").ids
    short = tokenizer.encode("a").ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8, pad_id=300)
    tokenizer.save(str(runner.folder / "tokenizer.json"))
    assert len(tokenizer_of(runner).encode("a").ids) == 8  # the file stores them
    for prompt, tokens in {"a long prompt": whole, "a": short}.items():
        done = run(runner, "--prompt", prompt, "--json")
        assert done.exit_code == 0, done.stderr
        assert runner.prompt == tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a pointer of Git LFS, expected the file itself; install Git LFS and run `git lfs pull`"),
        ("{}", "not a tokenizer"),
    ],
)
def test_a_file_that_is_no_tokenizer_matters_for_text_only(runner: EchoRunner, content: str, message: str) -> None:
    path = runner.folder / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    done = run(runner, "--prompt", "x")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: ") and message in done.stderr
    runner.tokens = [7, 8]
    done = run(runner, "--tokens", "1,2")
    assert (done.exit_code, done.stdout) == (0, "7,8\n"), done.stderr
    assert done.stderr.startswith("note: ") and message in done.stderr
    done = run(runner, "--tokens", "1,2", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["tokens"] == [7, 8] and "text" not in facts


def test_prompt_file(runner: EchoRunner, tmp_path: Path) -> None:
    text = "é😀 \r\nline\n"
    expected = tokenizer_of(runner).encode(text).ids
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    for name, stdin in {file: None, "-": text.encode()}.items():
        runner.prompt = []
        done = CliRunner().invoke(main, ["run", str(runner.folder), "--prompt-file", str(name), "--json"], input=stdin)
        assert done.exit_code == 0, done.stderr
        assert runner.prompt == expected
    long = "word " * 100_000  # more than a command line takes
    file.write_text(long, encoding="utf-8")
    assert run(runner, "--prompt-file", file, "--json").exit_code == 0
    assert len(runner.prompt) == len(long)


def test_tokens_from_standard_input(runner: EchoRunner) -> None:
    done = CliRunner().invoke(main, ["run", str(runner.folder), "--tokens-file", "-", "--json"], input="5, 6\n7\n")
    assert done.exit_code == 0, done.stderr
    assert runner.prompt == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"caf\xe9", (), "--prompt-file {file}: byte 3 is not UTF-8"),
        (None, (), "--prompt-file {file}: cannot be read (No such file or directory)"),
        (b"", (), "--prompt-file: holds no tokens"),
        (b"x", ("--prompt", "x"), "found --prompt and --prompt-file"),
        (b"x", ("--tokens", "1"), "found --prompt-file and --tokens"),
    ],
)
def test_prompt_files_that_are_refused(
    runner: EchoRunner, tmp_path: Path, content: bytes | None, options: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    done = run(runner, "--prompt-file", file, *options)
    assert done.exit_code == 2
    assert message.format(file=file) in done.stderr and "Traceback" not in done.stderr


def test_special_tokens(runner: EchoRunner) -> None:
    tokenizer = tokenizer_of(runner)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(runner.folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")
    runner.tokens = [*tokenizer.encode("a").ids, end, *tokenizer.encode("é").ids]
    for options, text in {(): "aé", ("--special-tokens",): "a<|end|>é"}.items():
        assert run(runner, "--tokens", 1, *options).stdout == text + "\n"
        assert json.loads(run(runner, "--tokens", 1, "--json", *options).stdout)["text"] == text
        lines = run(runner, "--tokens", 1, "--logprobs", *options).stdout.splitlines()
        assert lines[1] == f"{end}\t-1.0000  {'<|end|>' if options else ''!r}"
    (runner.folder / "tokenizer.json").unlink()
    done = run(runner, "--tokens", 1, "--special-tokens")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--special-tokens: " in done.stderr and "tokenizer.json not found" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "é😀".encode()), ("cp1252", b"\xe9?"), ("latin-1", b"\xe9?"), ("ascii", "é😀".encode())],
)
def test_a_stream_takes_every_character(
    runner: EchoRunner, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes
) -> None:
    runner.tokens = tokenizer_of(runner).encode("é😀").ids
    for options in ((), ("--logprobs",)):
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as exited:
            patch.setattr(sys, "stdout", out)
            patch.setattr(signal, "signal", lambda *_: None)
            main(["run", str(runner.folder), "--prompt", "x", *options])
        assert exited.value.code == 0
        found = out.buffer.getvalue()
        assert options or found == shown + b"\n"


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=str
)
def test_errors_are_printed_whatever_the_locale(tmp_path: Path, env: dict[str, str]) -> None:
    folder = tmp_path / "папка"
    folder.mkdir()
    done = subprocess.run([*COMMAND, "inspect", folder], capture_output=True, env=os.environ | env, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(b"error: ") and b"Traceback" not in done.stderr


def test_a_prompt_is_utf8_whatever_the_locale() -> None:
    text = "ascii(UTF8Text().convert(sys.argv[1], None, None))"
    code = f"import sys\nfrom gptoss_export.cli.params import UTF8Text\nprint({text})"
    env = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, "é😀".encode()], capture_output=True, env=env, check=False)
    assert done.stdout.decode() == ascii("é😀") + "\n", done.stderr
