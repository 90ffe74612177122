"""The tokenizer of an artifact: text to tokens, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .. import git_lfs
from ..artifact.manifest import Manifest
from ..errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class NoTokenizerError(UsageError):
    """The artifact has no tokenizer, or this machine has no library for it."""


Quiet = Callable[[], AbstractContextManager[object]]


class Text:
    """A tokenizer with one rule for special tokens.

    special_tokens  show them in decoded text; without it they are left out
    vocab_size      tokens of the model; None: unknown, and any token is good
    name            what errors call the tokenizer's file
    quiet           what surrounds each call of the library, which can write a report of its own to stderr

    The methods raise UsageError where the tokenizer fails.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special_tokens: bool = False,
        vocab_size: int | None = None,
        name: str = TOKENIZER_FILE,
        quiet: Quiet = nullcontext,
    ) -> None:
        self._quiet = quiet
        self._tokenizer, self._skip = tokenizer, not special_tokens
        self._vocab_size, self._name = vocab_size, name
        added = tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Raises UsageError for one that is no token of the model, too."""
        with self._quiet(), _reports_failures(f"{self._name}: cannot make tokens of this text"):
            # `encode` holds Python's lock: no other thread would run, for seconds where the text is long.
            (encoding,) = self._tokenizer.encode_batch_fast([text])
            tokens: list[int] = encoding.ids
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


def open_text(folder: Path, manifest: Manifest, special_tokens: bool = False, quiet: Quiet = nullcontext) -> Text:
    """The tokenizer of the artifact in a folder, without the truncation and padding that its file may store. The
    arguments are those of Text.

    Raises NoTokenizerError where there is none and where tokenizers is not installed, UsageError for a file that is
    not a tokenizer.
    """
    path = folder / TOKENIZER_FILE
    if TOKENIZER_FILE not in manifest.files:
        raise NoTokenizerError(f"{path} not found; without it there are token ids only (--tokens), no text")
    try:
        tokenizer = read_tokenizer(path, quiet)
    except ImportError:
        raise NoTokenizerError("tokenizers is not installed; run: pip install 'gptoss-export[text]'") from None
    return Text(tokenizer, special_tokens, manifest.model.vocab_size, str(path), quiet)


def read_tokenizer(path: Path, quiet: Quiet = nullcontext) -> Tokenizer:
    """Raises ImportError without the library, UsageError for a file that it does not read."""
    from tokenizers import Tokenizer

    with quiet(), _reports_failures(f"{path}: not a tokenizer"):
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
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt and the like
        raise UsageError(f"{failure} ({' '.join(str(error).split())})") from None
