"""A conversation at a terminal: lines with editing and history, and Ctrl-C that stops an answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..errors import GptOssExportError, UsageError
from .chat_commands import message_of, run_command
from .chat_output import Style, TextPrinter, is_dumb
from .chat_piped import decoded
from .chat_session import ChatSession
from .plain import say

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "


def converse(session: ChatSession, style: Style, read_line: LineReader) -> None:
    """Answer what a user types, until the end. An error with a message is shown, and the conversation goes on."""
    goes_on = True
    with CtrlC() as ctrl_c:
        while goes_on:
            try:
                goes_on = _take(session, style, read_line(ctrl_c), ctrl_c)
            except EOFError:
                return
            except KeyboardInterrupt:  # the line is given up
                pass
            except GptOssExportError as error:
                say(f"error: {error}", err=True)


def _take(session: ChatSession, style: Style, line: str, ctrl_c: CtrlC) -> bool:
    """Answer a line, or run its command. Returns whether the conversation goes on."""
    message = message_of(line)
    if message is None:
        return run_command(session, line)
    if message.strip():
        with ctrl_c.stops():
            answer = session.ask(message)
            ctrl_c.call(answer.cancel)
            printer = TextPrinter(style)
            for piece in answer:
                printer.piece(piece)
            printer.end(answer)
    return True


class CtrlC:
    """Inside of this context, Ctrl-C raises no KeyboardInterrupt wherever the program is, which prompt_toolkit and
    other code could not bear. It stops an answer or gives up a line, and is ignored otherwise."""

    def __init__(self) -> None:
        self._pressed = self._raises = False
        self._stop: Callable[[], None] | None = None

    @contextmanager
    def stops(self) -> Iterator[None]:
        """What Ctrl-C stops is being prepared, then runs. `call` names it."""
        self._pressed = False
        try:
            yield
        finally:
            self._stop = None

    @contextmanager
    def raises(self) -> Iterator[None]:
        """KeyboardInterrupt is raised in here, once."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def call(self, stop: Callable[[], None]) -> None:
        """What Ctrl-C calls from now on, and at once where it was pressed before."""
        self._stop = stop
        if self._pressed:
            stop()

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: object) -> None:
        self._pressed = True
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt
        if self._stop is not None:
            self._stop()


LineReader = Callable[[CtrlC], str]  # raises EOFError at the end, KeyboardInterrupt where the line is given up


def line_reader() -> LineReader:
    """What reads lines from this terminal: prompt_toolkit, or where the terminal moves no cursor, its own lines.

    Raises UsageError where prompt_toolkit is not installed.
    """
    return _plain_line if is_dumb() else _edited_lines()


def _plain_line(ctrl_c: CtrlC) -> str:
    try:
        with ctrl_c.raises():
            click.echo(PROMPT, nl=False)
            raw = sys.stdin.buffer.readline()
    except KeyboardInterrupt:
        click.echo()
        raise
    if not raw:
        click.echo()
        raise EOFError
    return decoded(raw, "the line")


def _edited_lines() -> LineReader:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
    except ImportError:
        raise UsageError(
            "prompt_toolkit is not installed, which edits lines; run: pip install 'gptoss-export[chat]', or pipe the "
            "messages in"
        ) from None
    prompts: PromptSession[str] = PromptSession(history=InMemoryHistory(), key_bindings=_keys())
    return lambda ctrl_c: prompts.prompt(PROMPT, handle_sigint=False)


def _keys() -> KeyBindings:
    """Ctrl-C clears the line; Alt-Enter begins another line of the same message."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("c-c")
    def clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    @keys.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
