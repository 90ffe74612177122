"""Which tokens an answer can have next, given those that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import RunError
from ..harmony.headers import HeaderTokens
from ..harmony.vocabulary import HarmonyTokenizer
from .grammars import Grammar, LimitError, Match
from .masks import Masks


@dataclass(frozen=True)
class AnswerGrammar:
    """The parts of an answer.

    header  of each message, from `<|start|>assistant` to `<|message|>`
    final   the body of the final message, and the token that ends it; None: free text
    calls   the same of a call, by its recipient
    """

    control: HarmonyTokenizer
    masks: Masks
    header: Grammar
    final: Grammar | None
    calls: Mapping[str, Grammar]


class Constraint:
    """Gives the tokens that one answer can have next: `allowed` of `Engine.submit`.

    It gets the tokens of the answer so far, without `<|start|>assistant`, which is in the prompt. Of a sequence that it
    got before, which may only have grown, it reads what is new; another one it reads from the beginning. One thread at
    a time may call it.

    The mask has a bit for each token of the model, in little-endian words of 32, and allows at least one. After
    `<|return|>` or `<|call|>` these two are allowed.

    Raises RunError for tokens that the masks did not allow, and where the library's limits are reached.
    """

    def __init__(self, grammar: AnswerGrammar) -> None:
        self._grammar = grammar
        self._tokens: Sequence[int] = ()
        self._read = 0  # so many of `_tokens`
        self._reader: _Reader | None = None  # has read them

    def __call__(self, tokens: Sequence[int]) -> bytes:
        try:
            return self._mask_after(tokens)
        except LimitError as error:
            if error.full is None:
                raise
            error.full.renew()
            return self._mask_after(tokens)

    def _mask_after(self, tokens: Sequence[int]) -> bytes:
        reader, read = self._reader, self._read
        if reader is None or tokens is not self._tokens or len(tokens) < read:
            reader, read = _Reader(self._grammar), 0
        self._reader = None  # where something fails, the next call reads from the beginning
        for index in range(read, len(tokens)):
            if not reader.take(token := tokens[index]):
                raise RunError(f"token {token} at {index} of the answer: found what the answer's format does not allow")
        mask = reader.mask()
        self._reader, self._tokens, self._read = reader, tokens, len(tokens)
        return mask


class _Reader:
    """Reads an answer. It is in a text with a grammar (a header, or a body in JSON), in free text, or at the end."""

    def __init__(self, grammar: AnswerGrammar) -> None:
        self._grammar = grammar
        self._match: Match | None = grammar.header.match()
        self._header: HeaderTokens | None = HeaderTokens()  # of the header that is being read
        self._text_end: int | None = None  # the token that ends the free text that is being read
        for token in (grammar.control.start, *grammar.control.encode("assistant")):
            self.take(token)

    def mask(self) -> bytes:
        """The tokens that can be next. Raises LimitError."""
        masks = self._grammar.masks
        if self._match is not None:
            return self._match.mask()
        if self._text_end is None:
            return masks.stops
        return masks.text_and_end if self._text_end == self._grammar.control.end else masks.text_and_return

    def take(self, token: int) -> bool:
        """Read the next token; False for one that is not allowed. Raises LimitError."""
        if self._match is None:
            return self._take_text(token)
        if not self._match.take(token):
            return False
        if self._header is not None:
            self._take_header(self._header, token)
        elif token in self._grammar.control.stop_tokens:
            self._match = None
        return True

    def _take_text(self, token: int) -> bool:
        """A token of free text, or after the end of the answer."""
        control = self._grammar.control
        if self._text_end is None:
            return token in control.stop_tokens
        if token != self._text_end:
            return self._grammar.masks.is_text(token)
        self._text_end = None
        if token == control.end:
            self._match, self._header = self._grammar.header.match(), HeaderTokens()
        return True

    def _take_header(self, header: HeaderTokens, token: int) -> None:
        control = self._grammar.control
        if token == control.message:
            self._begin_body(header)
        elif token != control.start:
            header.take(token, control)

    def _begin_body(self, header: HeaderTokens) -> None:
        control, grammar = self._grammar.control, self._grammar
        read = header.read(control)
        assert read is not None, "the grammar allows a header that is none"
        self._header = self._match = None
        if read.recipient is not None:
            self._match = grammar.calls[read.recipient].match()
        elif read.channel != "final":
            self._text_end = control.end
        elif grammar.final is None:
            self._text_end = control.return_
        else:
            self._match = grammar.final.match()
