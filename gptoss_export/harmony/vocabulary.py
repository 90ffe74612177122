"""The tokenizer of an artifact as the format needs it: the ids of control tokens, and text that makes none."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact.manifest import Manifest
from ..errors import UsageError, raise_all
from ..text.tokenizer import TOKENIZER_FILE, NoTokenizerError, Quiet, Text, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Field of HarmonyTokenizer -> the token. A field of another name than its token avoids a keyword.
CONTROL_TOKENS = {
    "start": "<|start|>",
    "end": "<|end|>",
    "message": "<|message|>",
    "channel": "<|channel|>",
    "constrain": "<|constrain|>",
    "call": "<|call|>",
    "return_": "<|return|>",
}


@dataclass(frozen=True)
class HarmonyTokenizer:
    """A tokenizer with the control tokens of the format. The fields are `text`, which decodes without special tokens,
    the library's own object, and the id of each control token."""

    text: Text
    tokenizer: Tokenizer
    start: int
    end: int
    message: int
    channel: int
    constrain: int
    call: int
    return_: int

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, quiet: Quiet = nullcontext) -> HarmonyTokenizer:
        """The tokenizer of the artifact in a folder. `quiet` is that of Text.

        Raises NoTokenizerError where there is none and where tokenizers is not installed, UsageError for a file that is
        not a tokenizer, and as `of` does.
        """
        path = folder / TOKENIZER_FILE
        if TOKENIZER_FILE not in manifest.files:
            raise NoTokenizerError(
                f"{path} not found; a conversation needs it: build the artifact from a checkpoint with tokenizer.json"
            )
        try:
            tokenizer = read_tokenizer(path, quiet)
        except ImportError:
            raise NoTokenizerError("tokenizers is not installed; run: pip install 'gptoss-export[text]'") from None
        return cls.of(tokenizer, manifest.model.vocab_size, str(path), quiet)

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, vocab_size: int, name: str = TOKENIZER_FILE, quiet: Quiet = nullcontext
    ) -> HarmonyTokenizer:
        """A tokenizer of the library, which is changed: it makes no special token of text from now on.

        Raises UsageError naming each control token that it lacks, that is no token of the model, or that it makes of
        plain text.
        """
        from tokenizers import processors

        tokenizer.encode_special_tokens = True  # text that reads as a special token is encoded as text
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds no tokens at the beginning or end
        text = Text(tokenizer, vocab_size=vocab_size, name=name, quiet=quiet)
        ids: dict[str, int] = {}
        problems = []
        for field, token in CONTROL_TOKENS.items():
            found = tokenizer.token_to_id(token)
            if found is None:
                problems.append(f"{token}: not found")
            elif found >= vocab_size:
                problems.append(f"{token}: found id {found}, expected 0 to {vocab_size - 1}, the model's tokens")
            elif not text.leaves_out(found):
                problems.append(f"{token}: found as text, expected a token that is marked as special")
            else:
                ids[field] = found
        raise_all(UsageError, f"{name}: lacks control tokens of gpt-oss's chat format, which a chat needs", problems)
        return cls(text, tokenizer, **ids)

    @property
    def stop_tokens(self) -> tuple[int, int]:
        """The tokens that end an answer: of its text, and of a call."""
        return self.return_, self.call

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. None is a control token, whatever the text says.

        Raises UsageError for text that the tokenizer cannot take, such as unpaired surrogates.
        """
        if (at := _surrogate(text)) is not None:
            raise UsageError(
                f"character {at} of a text: found \\u{ord(text[at]):04x}, half of a surrogate pair; "
                "expected Unicode text"
            )
        tokens = self.text.encode(text)
        if not self._control.isdisjoint(tokens):
            raise UsageError("the tokenizer makes a control token of plain text; build with the model's own tokenizer")
        return tokens

    @property
    def _control(self) -> set[int]:
        return {self.start, self.end, self.message, self.channel, self.constrain, self.call, self.return_}


def _surrogate(text: str) -> int | None:
    """Where the first unpaired surrogate of a text is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
