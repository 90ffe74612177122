"""Text of `run`: the artifact's tokenizer, and what it makes of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..runtime.runner import Runner

_TOKENIZER = "tokenizer.json"
_LFS_POINTER = "version https://git-lfs.github.com/spec/"


def open_tokenizer(runner: Runner, wanted_by: str | None) -> Tokenizer | None:
    """The artifact's tokenizer, without the truncation and padding that its file may store.

    wanted_by  the option that needs text. Without one, what cannot be opened is None, with a note on stderr where
               there is a file.

    Raises UsageError where text is wanted and the tokenizer cannot be opened.
    """
    from ..errors import UsageError

    path = runner.folder / _TOKENIZER
    if _TOKENIZER not in runner.manifest.files:
        if wanted_by is None:
            return None
        raise UsageError(f"{wanted_by}: {path} not found; give token ids with --tokens")
    try:
        return _read(path)
    except ImportError:
        if wanted_by is None:
            return None
        raise UsageError(f"{wanted_by}: tokenizers is not installed; run: pip install 'gptoss-export[text]'") from None
    except UsageError as error:
        if wanted_by is not None:
            raise
        click.echo(f"note: token ids are shown, no text: {error}", err=True)
        return None


def _read(path: Path) -> Tokenizer:
    """Raises ImportError without the library, UsageError for a file that it does not read."""
    from tokenizers import Tokenizer

    from ..errors import UsageError

    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path}: not a tokenizer ({error})") from None
    if content.startswith(_LFS_POINTER):
        raise UsageError(
            f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in the checkpoint's folder and "
            "build again"
        )
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain Exception
        raise UsageError(f"{path}: not a tokenizer ({error})") from None
    tokenizer.no_truncation()  # the prompt that was given is the prompt that is run
    tokenizer.no_padding()
    return tokenizer
