"""Text of `run`: the artifact's tokenizer, and what it makes of tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .plain import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..runtime.runner import Runner

_TOKENIZER = "tokenizer.json"
_REPLACEMENT = "\ufffd"  # what bytes decode to that are no character, or not yet
_LONGEST_WAIT = 8  # tokens that may end in a part of a character; a character has 4 bytes at most


class Text:
    """A tokenizer with one rule for special tokens.

    special_tokens  show them in decoded text; without it they are left out
    vocab_size      tokens of the model; None: unknown, and any token is good
    name            what errors call the tokenizer's file

    The methods raise UsageError where the tokenizer fails.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special_tokens: bool = False,
        vocab_size: int | None = None,
        name: str = _TOKENIZER,
    ) -> None:
        self._tokenizer, self._skip = tokenizer, not special_tokens
        self._vocab_size, self._name = vocab_size, name
        added = tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Raises UsageError for one that is no token of the model, too."""
        from ..errors import UsageError

        with _without_stderr(), _reports_failures(f"{self._name}: cannot make tokens of this text"):
            tokens: list[int] = self._tokenizer.encode(text).ids
        size = self._vocab_size
        if size is not None and (wrong := [token for token in tokens if token >= size]):
            raise UsageError(
                f"{self._name}: makes token {wrong[0]} of this text, and the model has tokens 0 to {size - 1}; "
                "build the artifact from a checkpoint with the tokenizer of its model"
            )
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        with _reports_failures(f"{self._name}: cannot make text of tokens"):
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=self._skip)
        return text

    def leaves_out(self, token: int) -> bool:
        """Whether decoding ignores a token."""
        return (self._skip and token in self._special) or self._tokenizer.id_to_token(token) is None


class TextStream:
    """Decodes tokens one at a time. The parts are together what decoding all tokens at once gives.

    A token may hold a part of a character, and a decoder may treat the first token differently. So the last tokens are
    decoded again, a few of them, whatever the length of the text.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._context: list[int] = []  # tokens whose text was given away, as `_given`
        self._given = ""
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if self._text.leaves_out(token):
            return ""
        self._waiting.append(token)
        text = self._text.decode(self._context + self._waiting)
        if not text.endswith(_REPLACEMENT):
            return self._give(len(self._waiting), text)
        if len(self._waiting) < _LONGEST_WAIT:
            return ""
        for count in range(len(self._waiting) - 1, 0, -1):
            # Bytes are no character where they decode to the same without the bytes that follow.
            before = self._text.decode(self._context + self._waiting[:count])
            if before + self._text.decode(self._waiting[count:]) == text:
                return self._give(count, before)
        return ""

    def end(self) -> str:
        """The rest of the text, after the last token."""
        return self._text.decode(self._context + self._waiting)[len(self._given) :]

    def _give(self, count: int, text: str) -> str:
        """Give away the first waiting tokens, with which the context decodes to `text`."""
        new = text[len(self._given) :]
        if new:
            self._context = self._waiting[:count]
            self._given = self._text.decode(self._context)
            self._waiting = self._waiting[count:]
        return new


def open_text(runner: Runner, wanted_by: str | None, special_tokens: bool) -> Text | None:
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
        raise UsageError(f"{wanted_by}: {path} not found; without it there are token ids only (--tokens), no text")
    try:
        return Text(_read(path), special_tokens, runner.manifest.model.vocab_size, str(path))
    except ImportError:
        if wanted_by is None:
            return None
        raise UsageError(f"{wanted_by}: tokenizers is not installed; run: pip install 'gptoss-export[text]'") from None
    except UsageError as error:
        if wanted_by is not None:
            raise
        say(f"note: token ids are shown, no text: {error}", err=True)
        return None


def _read(path: Path) -> Tokenizer:
    """Raises ImportError without the library, UsageError for a file that it does not read."""
    from tokenizers import Tokenizer

    from .. import git_lfs
    from ..errors import UsageError

    with _without_stderr(), _reports_failures(f"{path}: not a tokenizer"):
        content = path.read_bytes()
        if git_lfs.is_pointer(content):
            raise UsageError(
                f"{path}: found a pointer of Git LFS, expected the file itself; {git_lfs.ADVICE} and build again"
            )
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        # The prompt that was given is the prompt that is run, whatever settings the file stores.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:  # of BPE: would choose other tokens in each run
            tokenizer.model.dropout = None
    return tokenizer


@contextmanager
def _reports_failures(failure: str) -> Iterator[None]:
    """Raise UsageError where the library fails: it raises plain Exception, and BaseException for a panic of Rust."""
    from ..errors import UsageError

    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt and the like
        raise UsageError(f"{failure} ({' '.join(str(error).split())})") from None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what is written to the process's stderr: a panic of Rust writes a report there, past Python."""
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
