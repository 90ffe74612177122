"""`gptoss-export chat` in a pseudo-terminal: what a user types, what he sees, and which keys stop what."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pseudo_terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, UP, Terminal, terminal
from scripted import ANSWER

from gptoss_export.cli.chat_terminal import CtrlC

PROGRAM = Path(__file__).parent / "scripted_chat.py"
DIM, RESET = "\x1b[2m", "\x1b[0m"
FULL = {"TERM": "xterm-256color"}
KINDS = {"colour": FULL, "no colour": {**FULL, "NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}, "none": {"TERM": ""}}


@contextlib.contextmanager
def chat(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    """The command with the scripted model, after its first prompt."""
    (folder / "artifact").mkdir()
    command = [sys.executable, str(PROGRAM), str(folder / "artifact"), "chat", "artifact", *options]
    with terminal(command, env or FULL) as opened:
        assert "a context of 800 tokens, effort medium. /help lists the commands." in opened.prompt()
        yield opened


def ask(opened: Terminal, line: str) -> str:
    """Type a line; what is shown until the next prompt, without the line itself."""
    opened.type(line + ENTER)
    return opened.prompt().partition(line)[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation(tmp_path: Path, kind: str) -> None:
    with chat(tmp_path, env=KINDS[kind]) as opened:
        shown = ask(opened, "Hello")
        labels = ("", "") if kind == "colour" else ("[reasoning]\n", "[answer]\n")
        assert f"{labels[0]}Message 1.\n\n{labels[1]}You said Hello.\n\n" in shown
        assert "You said unicode" not in ask(opened, "unicode")
        assert "日本 é 😀" in opened.text
        assert "Message 3." in ask(opened, "Again")
        assert (DIM in opened.shown) == (kind == "colour")
        if kind in ("dumb", "none"):
            assert "\x1b" not in opened.shown
        opened.type(CTRL_D)
        assert opened.ends() == 0
        assert "Traceback" not in opened.text


def test_reasoning_is_dimmed_and_nothing_else(tmp_path: Path) -> None:
    with chat(tmp_path) as opened:
        ask(opened, "Hello")
        dimmed = [part.partition(RESET)[0] for part in opened.shown.split(DIM)[1:]]
        assert "".join(dimmed) == "Message 1."


def test_reasoning_can_be_left_out(tmp_path: Path) -> None:
    with chat(tmp_path, "--no-reasoning") as opened:
        shown = ask(opened, "Hello")
        assert "You said Hello.\n" in shown and "Message 1." not in shown


@pytest.mark.parametrize("kind", ["colour", "dumb"])
def test_ctrl_c_stops_an_answer_and_not_the_program(tmp_path: Path, kind: str) -> None:
    with chat(tmp_path, env=KINDS[kind]) as opened:
        opened.type("slow" + ENTER)
        opened.wait_for("go on go")
        opened.type(CTRL_C)
        assert "\n[stopped]\n" in opened.prompt()
        assert "Message 2." in ask(opened, "Hello")
        file = tmp_path / "chat.json"
        assert f"messages saved to {file}]" in ask(opened, f"/save {file}")
        messages = json.loads(file.read_text())["messages"]
        assert messages[1] == {"role": "assistant", "channel": "analysis", "content": "Slowly."}
        assert messages[2]["content"].startswith("go on go") and messages[3]["content"] == "Hello"
        opened.type("/exit" + ENTER)
        assert opened.ends() == 0


@pytest.mark.parametrize("kind", ["colour", "dumb"])
def test_ctrl_c_at_any_moment(tmp_path: Path, kind: str) -> None:
    """From the end of the line to long after the answer has stopped. Nothing but the answer ends, whenever it comes."""
    with chat(tmp_path, env=KINDS[kind]) as opened:
        for _ in range(4):
            opened.type("slow" + ENTER)
            for _ in range(100):
                opened.process.send_signal(signal.SIGINT)
                time.sleep(0.01)
        opened.type("slow" + ENTER)
        opened.wait_for("go on")
        opened.type(CTRL_C)
        opened.wait_for("[stopped]")
        opened.prompt()
        assert "You said Hello." in ask(opened, "Hello")
        assert "Traceback" not in opened.text


def test_ctrl_c_counts_from_the_question_on() -> None:
    """Also while the prompt is prepared, when there is nothing to stop yet. Not what was pressed before or after."""
    stopped: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with CtrlC() as ctrl_c:
        signal.raise_signal(signal.SIGINT)
        with ctrl_c.stops():
            ctrl_c.call(lambda: stopped.append("first"))
            assert stopped == []
            signal.raise_signal(signal.SIGINT)
            assert stopped == ["first"]
        signal.raise_signal(signal.SIGINT)
        with ctrl_c.stops():
            signal.raise_signal(signal.SIGINT)
            ctrl_c.call(lambda: stopped.append("second"))
        with pytest.raises(KeyboardInterrupt), ctrl_c.raises():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stopped == ["first", "second"]
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("kind", ["colour", "dumb"])
def test_ctrl_c_at_the_prompt_gives_up_the_line(tmp_path: Path, kind: str) -> None:
    with chat(tmp_path, env=KINDS[kind]) as opened:
        opened.type("never sent")
        opened.wait_for("never sent")
        time.sleep(0.3)  # the terminal itself may have shown it, before the program waits for the line
        opened.type(CTRL_C)
        if kind == "dumb":
            opened.prompt()
        assert "You said Hello." in ask(opened, "Hello")
        assert "You said never" not in opened.text
        for _ in range(3):
            opened.type(CTRL_C)
            if kind == "dumb":
                opened.prompt()
        assert "Message 2." in ask(opened, "still there")


def test_lines_are_edited_and_remembered(tmp_path: Path) -> None:
    with chat(tmp_path) as opened:
        ask(opened, "Hello")
        opened.type(UP)
        opened.wait_for("Hello")
        opened.type("\x7f" * 2 + "p" + ENTER)  # two letters less, another one
        assert "You said Help." in opened.prompt()


def test_a_message_of_several_lines(tmp_path: Path) -> None:
    """Typed, and pasted as terminals paste."""
    with chat(tmp_path) as opened:
        opened.type("a" + ALT_ENTER + "b" + ENTER)
        opened.wait_for("You said a\nb.")
        opened.prompt()
        opened.type("\x1b[200~c\nd\x1b[201~" + ENTER)
        opened.wait_for("You said c\nd.")
        assert "Message 2." in opened.text


def test_commands(tmp_path: Path) -> None:
    with chat(tmp_path) as opened:
        assert "/effort low|medium|high  how long the model reasons" in ask(opened, "/help")
        assert "error: /nonsense: no command, expected one of /reset, /effort" in ask(opened, "/nonsense")
        assert "[effort low from the next message on]" in ask(opened, "/effort low")
        assert "error: /effort: found much, expected low, medium or high" in ask(opened, "/effort much")
        assert "Message 1." in ask(opened, "Hello")
        assert "[a new conversation]" in ask(opened, "/reset")
        assert "Message 1." in ask(opened, "Again")
        assert "error: /save /no/folder/x: expected a file in a folder that exists" in ask(opened, "/save /no/folder/x")
        assert ask(opened, "   ").strip(" \n>") == ""
        opened.type("/exit" + ENTER)
        assert opened.ends() == 0


def test_errors_do_not_end_the_conversation(tmp_path: Path) -> None:
    with chat(tmp_path) as opened:
        assert "error: the model fails" in ask(opened, "fail")
        shown = ask(opened, "endless")
        assert "[cut off: the context of 800 tokens is full; /reset begins a new conversation]" in shown
        assert "expected fewer than the 800 of the context (--max-context of the build); /reset" in ask(opened, "more")
        ask(opened, "/reset")
        assert "You said more." in ask(opened, "more")
        assert "[call of functions.f]\n" in ask(opened, "call")


def test_an_answer_does_not_steer_the_terminal(tmp_path: Path) -> None:
    with chat(tmp_path) as opened:
        assert r"\x1b[31mred\x1b]0;title\x07" in ask(opened, "escape")
        assert "\x1b[31m" not in opened.shown and "\x07" not in opened.shown


@pytest.mark.parametrize("at", ["the prompt", "an answer"])
def test_a_signal_leaves_the_terminal_as_it_was(tmp_path: Path, at: str) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), "chat", "artifact"]
    with terminal(command, FULL) as opened:
        before = opened.settings()
        opened.prompt()
        if at == "an answer":
            opened.type("slow" + ENTER)
            opened.wait_for("go on")
        else:
            opened.type("unfinished")
            opened.wait_for("unfinished")
            assert opened.settings() != before
        opened.process.send_signal(signal.SIGTERM)
        assert opened.ends() == 128 + signal.SIGTERM
        assert opened.settings() == before
        assert "Traceback" not in opened.text


def test_json_needs_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), "chat", "artifact", "--json"]
    with terminal(command, FULL) as opened:
        assert opened.ends() == 2
        assert "error: --json: found a terminal, expected messages that are piped in, one a line" in opened.text


def test_piped_messages_answered_at_a_terminal(tmp_path: Path) -> None:
    """`echo Hello | gptoss-export chat A`: no prompt, no colour, no reasoning. The terminal is not steered."""
    program = f"'{sys.executable}' '{PROGRAM}' '{tmp_path}' chat artifact"
    with terminal(["sh", "-c", f"printf 'Hello\\nescape\\n' | {program}"], FULL) as opened:
        assert opened.ends() == 0
        assert opened.shown == "You said Hello.\r\n\\x1b[31mred\\x1b]0;title\\x07\r\n"


def test_without_prompt_toolkit(tmp_path: Path) -> None:
    """It says what to install, before anything is loaded. A terminal that moves no cursor does not need it."""
    code = (
        f"import sys, runpy; sys.modules['prompt_toolkit'] = None; sys.argv = {['x', str(tmp_path), 'chat', 'a']!r}\n"
    )
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    with terminal([sys.executable, "-c", code], FULL) as opened:
        assert opened.ends() == 2
        assert (
            "prompt_toolkit is not installed, which edits lines; run: pip install 'gptoss-export[chat]'" in opened.text
        )
    with terminal([sys.executable, "-c", code], {"TERM": "dumb"}) as opened:
        opened.prompt()
        assert "You said Hello." in ask(opened, "Hello")


def test_a_built_artifact(scripted: Path) -> None:
    with terminal([sys.executable, "-m", "gptoss_export", "chat", str(scripted)], FULL) as opened:
        assert "/help lists the commands." in opened.prompt()
        for _ in range(2):
            opened.type("Hello" + ENTER)
            assert f"Think\n\n{ANSWER}\n" in opened.prompt()
        opened.type(CTRL_D)
        assert opened.ends() == 0


def test_ctrl_c_stops_a_built_artifact(endless: Path) -> None:
    with terminal([sys.executable, "-m", "gptoss_export", "chat", str(endless)], FULL) as opened:
        opened.prompt()
        for _ in range(2):
            opened.type("Hello" + ENTER)
            opened.wait_for("Think\n\n" + ANSWER[:10])
            opened.type(CTRL_C)
            assert "[stopped]" in opened.prompt()
        opened.type(CTRL_D)
        assert opened.ends() == 0
