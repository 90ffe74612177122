"""Foreign text as text: names and values of a checkpoint or an artifact cannot steer a terminal."""

from __future__ import annotations

import re

import click

# Control characters but tab and line break, marks that turn the direction of a line, and surrogates.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with each character that steers a terminal written out, such as \\x1b."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_message(text: str) -> str:
    """The text as `plain` gives it, `shortened`. Further lines are indented: a name with a line break in it cannot look
    like a message of its own."""
    from ..errors import shortened

    return re.sub(r"\n(?=\S)", "\n  ", plain(shortened(text)))


def say(text: str, err: bool = False) -> None:
    """Print one message to stdout, or with `err` to stderr."""
    click.echo(one_message(text), err=err)
