"""A program in a pseudo-terminal, as a user has it in front of him: typed keys go in, what is shown comes out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CTRL_C, CTRL_D, UP, ENTER, ALT_ENTER = "\x03", "\x04", "\x1b[A", "\r", "\x1b\r"
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_=>]")
PATIENCE = 120.0  # seconds; the machine of a test may be busy


class Terminal:
    """`shown` is all that the program has written so far, with its escape sequences."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor = process, descriptor
        self.shown = ""
        self._read = 0  # characters of `text` that a test has waited for

    @property
    def text(self) -> str:
        """What was shown, without escape sequences and the ways to move the cursor to a place where it is."""
        shown = self.shown.replace("\x08\x1b[2C", " ")  # prompt_toolkit's way to the place after `> `
        return re.sub("\r+\n", "\n", _ESCAPES.sub("", shown))

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait until a text is shown that was not before; what was shown up to its end."""
        end = time.monotonic() + PATIENCE
        while (at := self.text.find(text, self._read)) < 0:
            assert time.monotonic() < end, f"{text!r} is not shown after {self.text[self._read :]!r}"
            assert self._more() or text in self.text[self._read :], f"ended without {text!r}: {self.text!r}"
        before, self._read = self.text[self._read : at + len(text)], at + len(text)
        return before

    def prompt(self) -> str:
        """Wait for the next prompt; what was shown before it."""
        return self.wait_for("\n> ")

    def ends(self) -> int:
        """Wait for the end of the program: its exit code."""
        while self._more():
            pass
        return self.process.wait(PATIENCE)

    def settings(self) -> list[Any]:
        """How the terminal treats keys: raw or by lines, with or without echo."""
        return termios.tcgetattr(self._descriptor)

    def _more(self) -> bool:
        """Read what is there; False where the program has ended."""
        if not select.select([self._descriptor], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # nobody has the other end any more
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


@contextlib.contextmanager
def terminal(command: Sequence[str], env: Mapping[str, str]) -> Iterator[Terminal]:
    """A program in a terminal of 200 columns of its own, which is killed at the end where it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
        env={**variables, "PROMPT_TOOLKIT_NO_CPR": "1", **env},
    )
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
        os.close(theirs)
