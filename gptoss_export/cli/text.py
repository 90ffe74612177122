"""Text of commands: the artifact's tokenizer where a command can have it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .plain import say

if TYPE_CHECKING:
    from ..runtime.runner import Runner
    from ..text.tokenizer import Text


def open_text(runner: Runner, wanted_by: str | None, special_tokens: bool) -> Text | None:
    """The artifact's tokenizer.

    wanted_by  the option that needs text. Without one, what cannot be opened is None, with a note on stderr where
               there is a file.

    Raises UsageError where text is wanted and the tokenizer cannot be opened.
    """
    from ..errors import UsageError
    from ..text.tokenizer import NoTokenizerError
    from ..text.tokenizer import open_text as open_tokenizer

    try:
        return open_tokenizer(runner.folder, runner.manifest, special_tokens, without_stderr)
    except NoTokenizerError as error:
        if wanted_by is not None:
            raise UsageError(f"{wanted_by}: {error}") from None
    except UsageError as error:
        if wanted_by is not None:
            raise
        say(f"note: token ids are shown, no text: {error}", err=True)
    return None


@contextmanager
def without_stderr() -> Iterator[None]:
    """Drop what is written to the process's stderr: a panic of Rust writes a report there, past Python. For a
    process in which one thread has the tokenizer."""
    try:
        kept = os.dup(2)
    except OSError:  # the caller closed it
        yield
        return
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        os.close(devnull)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
