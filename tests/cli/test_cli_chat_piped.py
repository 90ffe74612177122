"""`gptoss-export chat` with messages that are piped in: answers on stdout and nothing else, or one JSON object each."""

from __future__ import annotations

import datetime
import json
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scripted_chat import CONTEXT, ScriptedExecutor, scripted_runner

from gptoss_export import Engine, SamplingParams, load
from gptoss_export.cli import main
from gptoss_export.harmony.messages import Conversation, Message
from gptoss_export.harmony.rendering import prompt_tokens
from gptoss_export.harmony.vocabulary import HarmonyTokenizer


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedExecutor:
    (tmp_path / "artifact").mkdir()
    runner, executor = scripted_runner(tmp_path / "artifact")
    monkeypatch.setattr("gptoss_export.loading.load", lambda *_, **__: runner)
    return executor


def chat(text: str | bytes, *options: object, artifact: object = "artifact") -> Result:
    """The command with a text as its standard input; the process's handlers of signals stay."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        return CliRunner().invoke(main, ["chat", str(artifact), *map(str, options)], input=text)
    finally:
        assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_each_line_is_answered_in_turn(executor: ScriptedExecutor) -> None:
    done = chat("Hello\n\n  \r\nunicode\r\nAgain")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "You said Hello.\n日本 é 😀\nYou said Again.\n"
    assert "<|message|>日本 é 😀<|end|><|start|>user<|message|>Again<|end|>" in executor.prompts[2]


@pytest.mark.parametrize(
    ("text", "stdout"),
    [
        ("", ""),
        ("\n\n", ""),
        ("nothing\nHello\n", "\nYou said Hello.\n"),
        ("lines\n", "one\ntwo\n"),
        ("escape\n", "\x1b[31mred\x1b]0;title\x07\n"),
        ("preamble\n", "I look.\nDone.\n"),
        ("//reset\n", "You said /reset.\n"),
        ("/exit\nHello\n", ""),
    ],
)
def test_what_is_printed(executor: ScriptedExecutor, text: str, stdout: str) -> None:
    done = chat(text)
    assert (done.exit_code, done.stdout, done.stderr) == (0, stdout, "")


def test_reasoning_where_it_is_asked_for(executor: ScriptedExecutor) -> None:
    done = chat("Hello\nAgain\n", "--reasoning")
    assert done.stdout == (
        "[reasoning]\nMessage 1.\n\n[answer]\nYou said Hello.\n[reasoning]\nMessage 2.\n\n[answer]\nYou said Again.\n"
    )


def test_a_call_is_shown_and_not_run(executor: ScriptedExecutor) -> None:
    done = chat("call\n")
    assert done.stdout == '[call of functions.f]\n{"a":1}\n'
    assert done.stderr == "[a chat has no tools: the call was not run]\n"


@pytest.mark.parametrize("recipient", ["user", "all", "assistant"])
def test_a_message_to_the_user_is_no_call(executor: ScriptedExecutor, recipient: str) -> None:
    done = chat(f"to {recipient}\n")
    assert (done.stdout, done.stderr) == ("Hi there.\n", "")
    facts = json.loads(chat(f"to {recipient}\n", "--json").stdout)
    assert (facts["answer"], facts["calls"]) == ("Hi there.", [])


def test_json_is_one_object_a_turn(executor: ScriptedExecutor) -> None:
    done = chat("Hello\ncall\npreamble\n", "--json")
    first, second, third = (json.loads(line) for line in done.stdout.splitlines())
    facts = {name: first[name] for name in ("message", "answer", "reasoning", "calls", "finish")}
    assert facts == {
        "message": "Hello",
        "answer": "You said Hello.",
        "reasoning": "Message 1.",
        "calls": [],
        "finish": "stop",
    }
    assert first["tokens"] == len("canalysismMessage 1.esassistantcfinalmYou said Hello.r")  # a letter a special token
    assert second["calls"] == [
        {
            "role": "assistant",
            "channel": "commentary",
            "recipient": "functions.f",
            "content_type": "<|constrain|>json",
            "content": '{"a":1}',
        }
    ]
    assert (second["answer"], third["answer"]) == ("", "I look.\n\nDone.")
    assert first["reused_tokens"] == 0 < first["prompt_tokens"] // 2 < second["reused_tokens"] < second["prompt_tokens"]
    assert done.exit_code == 0


def test_options_reach_the_model(executor: ScriptedExecutor) -> None:
    chat(
        "Hello\n", "--effort", "high", "--instructions", "Rhyme, é.", "--temperature", 0.5, "--top-p", 0.9, "--seed", 3
    )
    assert "Reasoning: high\n" in executor.prompts[0]
    assert "# Instructions\n\nRhyme, é.<|end|>" in executor.prompts[0]
    assert executor.params[0] == SamplingParams(temperature=0.5, top_p=0.9, seed=3)


def test_seeds_differ_and_temperature_is_one(executor: ScriptedExecutor) -> None:
    params = []
    for _ in range(2):
        executor.params = [SamplingParams()] * 2
        assert chat("Hello\n").exit_code == 0
        params.append(executor.params[0])
    assert [param.temperature for param in params] == [1.0, 1.0]
    assert params[0].seed != params[1].seed


def test_an_answer_that_is_cut_off_says_so(executor: ScriptedExecutor) -> None:
    done = chat("endless\n", "--max-new-tokens", 30)
    assert done.stdout == f"{'x' * 23}\n"
    assert done.stderr == "[cut off after 30 tokens (--max-new-tokens)]\n"
    assert json.loads(chat("endless\n", "--max-new-tokens", 30, "--json").stdout)["finish"] == "length"


def test_a_full_context_ends_with_both_numbers(executor: ScriptedExecutor) -> None:
    done = chat("Hello\nendless\nmore\nnever\n")
    assert done.exit_code == 2
    assert done.stdout.startswith("You said Hello.\nxxx")
    assert len(done.stdout.splitlines()) == 2
    note, error = done.stderr.splitlines()
    assert note == f"[cut off: the context of {CONTEXT} tokens is full; /reset begins a new conversation]"
    assert f"expected fewer than the {CONTEXT} of the context (--max-context of the build); /reset begins" in error
    assert chat("Hello\nendless\n/reset\nmore\n").exit_code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"caf\xe9", r"line 2 of standard input: byte 3 is not UTF-8"),
        (b"\x80", "line 2 of standard input: byte 0 is not UTF-8 (invalid start byte); give the text in UTF-8"),
        (b"/nonsense", "/nonsense: no command, expected one of /reset, /effort, /save, /help, /exit"),
        (b"/", "/: no command, expected one of"),
        (b"/reset now", "/reset: found 'now' after it, expected nothing"),
        (b"/effort", "/effort: found nothing (it is medium), expected low, medium or high"),
        (b"/effort huge", "/effort: found huge, expected low, medium or high"),
        (b"/save", "/save: found no name, expected that of a file"),
        (b"/save /no/such/folder/x", "/save /no/such/folder/x: expected a file in a folder that exists"),
        (b"/save ~nobody-here/x", "/save ~nobody-here/x: found no name of a file"),
        (b"/save " + b"a" * 300, f"/save {Path('a' * 300).absolute()}: cannot be written (File name too long)"),
        (b"/save a\0b", r"/save a\x00b: found no name of a file"),
        (b"fail", "the model fails"),
    ],
)
def test_an_error_ends_with_2_after_the_answers_before(executor: ScriptedExecutor, line: bytes, message: str) -> None:
    done = chat(b"Hello\n" + line + b"\nAgain\n")
    assert done.exit_code == 2
    assert done.stdout == "You said Hello.\n"
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--effort", "huge"), "'huge' is not one of 'low', 'medium', 'high'"),
        (("--temperature", -1), "temperature: found -1.0, expected a number of 0 or more"),
        (("--max-new-tokens", 0), "0 is not in the range x>=1"),
        (("--top-p", 0), "top_p: found 0.0"),
    ],
)
def test_options_out_of_range(executor: ScriptedExecutor, options: tuple[object, ...], message: str) -> None:
    done = chat("Hello\n", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_commands_between_messages(executor: ScriptedExecutor, tmp_path: Path) -> None:
    file = tmp_path / "a file.json"
    done = chat(f"Hello\n/effort low\nAgain\n/save {file}\n/reset\nfresh\n/help\n")
    assert (done.exit_code, done.stdout) == (0, "You said Hello.\nYou said Again.\nYou said fresh.\n")
    for line in (
        "[effort low from the next message on]",
        f"[6 messages saved to {file}]",
        "[a new conversation]",
        "/save FILE               write the conversation to a file, as JSON",
    ):
        assert line in done.stderr.splitlines()
    assert ["Reasoning: low" in prompt for prompt in executor.prompts] == [False, True, True]
    assert ["Hello" in prompt for prompt in executor.prompts] == [True, True, False]
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["effort"] == "low"
    assert [(message["role"], message["content"]) for message in saved["messages"]] == [
        ("user", "Hello"),
        ("assistant", "Message 1."),
        ("assistant", "You said Hello."),
        ("user", "Again"),
        ("assistant", "Message 2."),
        ("assistant", "You said Again."),
    ]


def test_a_conversation_is_not_saved_into_the_artifact(executor: ScriptedExecutor, tmp_path: Path) -> None:
    done = chat(f"/save {tmp_path / 'artifact' / 'manifest.json'}\n")
    assert done.exit_code == 2
    assert "which the command reads; name a file outside of it" in done.stderr


def test_a_file_that_cannot_be_written_stays(
    executor: ScriptedExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replaced as a whole, or not at all."""
    file = tmp_path / "chat.json"
    file.write_text("before")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    done = chat(f"/save {file}\n")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: /save {file}: cannot be written (No space left on device")
    assert file.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "chat.json"]


def test_answers_come_while_the_input_is_open(tmp_path: Path) -> None:
    """A program that reads each answer before it writes the next message."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "scripted_chat.py", tmp_path, "chat", "artifact"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            assert select.select([process.stdout], [], [], 120)[0], "no answer comes"
            assert process.stdout.readline() == b"You said " + word + b".\n"
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reader_that_is_gone_ends_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "scripted_chat.py", tmp_path, "chat", "artifact"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(b"Hello\nslow\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"You said Hello.\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""


def test_standard_input_that_is_closed(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).parent / "scripted_chat.py"), str(tmp_path), "chat", "artifact"]
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard input: found none, expected a terminal, or messages")


def test_a_built_artifact_answers_as_its_engine_does(artifact: Path) -> None:
    """Greedy, with random weights: the tokens are those of a prompt that is made here."""
    runner = load(artifact)
    tokenizer = HarmonyTokenizer.open(artifact, runner.manifest)
    done = chat("Hé\nAgain\n", "--temperature", 0, "--max-new-tokens", 12, "--json", artifact=artifact)
    assert done.exit_code == 0, done.stderr
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert [turn["message"] for turn in turns] == ["Hé", "Again"]
    today = datetime.date.today().isoformat()
    prompt = prompt_tokens(Conversation((Message("user", "Hé"),), date=today), tokenizer)
    with Engine(runner) as engine:
        expected = engine.submit(
            prompt, 12, stop_tokens=[*tokenizer.stop_tokens, *runner.manifest.stop_tokens]
        ).result()
    assert turns[0]["prompt_tokens"] == len(prompt)
    assert turns[0]["tokens"] == len(expected.tokens)
    assert turns[0]["answer"] == tokenizer.text.decode(expected.tokens)
    assert turns[1]["reused_tokens"] > len(prompt) // 2
