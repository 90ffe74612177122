"""Messages on a terminal: names and values of a checkpoint or an artifact cannot steer it."""

from __future__ import annotations

import re
import sys

import click

from ..shown_text import plain


def one_message(text: str) -> str:
    """The text as `plain` gives it, `shortened`. Further lines are indented: a name with a line break in it cannot look
    like a message of its own."""
    from ..errors import shortened

    return re.sub(r"\n(?=\S)", "\n  ", plain(shortened(text)))


def for_stdout(text: str) -> str:
    """Text of a model, with its control characters written out where stdout is a terminal."""
    return plain(text) if sys.stdout.isatty() else text


def say(text: str, err: bool = False) -> None:
    """Print one message to stdout, or with `err` to stderr."""
    click.echo(one_message(text), err=err)
