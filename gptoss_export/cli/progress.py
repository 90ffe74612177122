"""The progress of long work on stderr: a spinner on a terminal, one line for each stage that is done.

rich is imported when work starts, so that `--help` stays quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..progress import Progress
from ..shown_text import plain
from .streams import new_console
from .tables import readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class TerminalProgress(Progress):
    """Shows each stage. `status` is the spinner, which rich leaves out where stderr is no terminal."""

    def __init__(self, console: Console, status: Status) -> None:
        super().__init__()
        self._console, self._status = console, status

    def started(self, name: str) -> None:
        self.update(name)

    def finished(self, name: str, seconds: float) -> None:
        self._print((f"{seconds:8.2f} s", "dim"), f"  {name}")

    def update(self, text: str) -> None:
        from rich.text import Text

        self._status.update(Text(plain(text)))

    def note(self, text: str) -> None:
        self._print(("note:", "bold"), f" {text}")

    def facts(self, title: str, values: Mapping[str, Any]) -> None:
        width = max(map(len, values), default=0)
        self._print((f"{title}:", "bold"))
        for name, value in values.items():
            self._print((f"  {name:<{width}}", "dim"), f"  {readable(value)}")

    def _print(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of strings, or of strings with a style. Neither rich nor the terminal reads the text."""
        from rich.text import Text

        self._console.print(Text.assemble(*map(_plain, parts)), soft_wrap=True)  # a log gets each line whole


def _plain(part: str | tuple[str, str]) -> str | tuple[str, str]:
    return plain(part) if isinstance(part, str) else (plain(part[0]), part[1])


@contextmanager
def progress() -> Iterator[TerminalProgress]:
    """The progress of one command."""
    console = new_console(stderr=True)
    with console.status("") as status:
        yield TerminalProgress(console, status)
