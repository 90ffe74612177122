"""Compiled grammars, and how far an answer has come in one. The only module that uses llguidance."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..errors import RunError, UsageError
from ..harmony.vocabulary import HarmonyTokenizer
from ..model.sampling_state import MASK_WORD, mask_words
from .token_bytes import TokenBytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

NO_FORCING = '%llguidance {"no_forcing": true}\n'  # begins each grammar
_TOO_WIDE = "Current row has"  # in the library's message where too much can come next, in any state of the grammar
MOST_GRAMMARS = 64  # compiled grammars that are kept; a small one has about 1 MB


class GrammarError(Exception):
    """A grammar cannot be compiled; the message is the library's."""


class LimitError(RunError):
    """The library gave up.

    full  the grammar, where the states that earlier answers needed may have filled it: without them it may work
    """

    def __init__(self, message: str, full: Grammar | None) -> None:
        super().__init__(message)
        self.full = full


class Grammars:
    """Compiles grammars for the tokens of a model, and keeps those that were used last. Any thread may call it.

    Making it takes about a second with the 200,000 tokens of gpt-oss, during which no other Python thread runs.
    Raises UsageError where llguidance is not installed.
    """

    def __init__(self, control: HarmonyTokenizer, tokens: TokenBytes) -> None:
        try:
            from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise UsageError("llguidance is not installed; run: pip install 'gptoss-export[serve]'") from None
        self.tokenizer: LLTokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(control, tokens)))
        self.vocab_size = len(tokens.each)
        self.limits: LLParserLimits = LLParserLimits(verbose_errors=False)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Grammar] = OrderedDict()

    def compiled(self, text: str) -> Grammar:
        """A grammar in one of the library's notations. Raises GrammarError where it cannot be compiled."""
        with self._lock:
            if (found := self._kept.get(text)) is not None:
                self._kept.move_to_end(text)
                return found
        made = Grammar(self, text)
        with self._lock:
            self._kept[text] = made
            while len(self._kept) > MOST_GRAMMARS:
                self._kept.popitem(last=False)
        return made


class _Vocabulary:
    """What the library asks of a tokenizer.

    It would call it to make tokens of text that has to come next, while it holds a lock and waits for Python's. The
    grammars say no_forcing, so that it does not, and the model decides into which tokens a text is split.
    """

    def __init__(self, control: HarmonyTokenizer, tokens: TokenBytes) -> None:
        self.tokens = tokens.each
        self.special_token_ids = sorted(tokens.special)
        self.bos_token_id = None
        self.eos_token_id = control.end  # is in no grammar: they name the tokens that end a text themselves

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError("grammars for these tokens need the option no_forcing")


class Grammar:
    """A compiled grammar. Its matches share the states of its lexer, so that each is computed once.

    Raises GrammarError where it cannot be compiled, and where no text can begin.
    """

    def __init__(self, grammars: Grammars, text: str) -> None:
        self._grammars, self._text = grammars, text
        self._first = self._compile()

    def match(self) -> Match:
        """The beginning of a text."""
        return Match(self, self._first.deep_copy(), self._grammars.vocab_size)

    def renew(self) -> None:
        """Forget the states of earlier texts."""
        self._first = self._compile()

    def _compile(self) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._grammars.tokenizer, self._text, log_level=0, limits=self._grammars.limits)
        if not matcher.is_stopped():
            matcher.compute_bitmask()  # stops where nothing can be first
        if matcher.is_stopped():
            raise GrammarError(_reason(matcher))
        return matcher


class Match:
    """A text that follows a grammar, token by token."""

    def __init__(self, grammar: Grammar, matcher: LLMatcher, vocab_size: int) -> None:
        self._grammar, self._matcher, self._vocab_size = grammar, matcher, vocab_size
        self._mask_size = mask_words(vocab_size) * MASK_WORD // 8

    def take(self, token: int) -> bool:
        """Take the next token; False for one that the grammar does not allow. Raises LimitError."""
        if not 0 <= token < self._vocab_size:
            return False
        if self._matcher.try_consume_tokens([token]) == 1:
            return True
        self._check()
        return False

    def mask(self) -> bytes:
        """The tokens that can be next, of a text that has not ended. Raises LimitError."""
        mask = self._matcher.compute_bitmask()  # the library's end token where it has stopped
        self._check()
        return mask[: self._mask_size]

    def _check(self) -> None:
        if self._matcher.is_stopped():
            reason = _reason(self._matcher)
            raise LimitError(
                f"the format of this answer is too complex ({reason}); ask for a simpler one",
                None if _TOO_WIDE in reason else self._grammar,
            )


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher has stopped: the library's message, without the report that follows it."""
    message = matcher.get_error()
    for report in ("\n<", "`\n<backtrace>"):
        message = message.split(report)[0]
    return " ".join(message.split()) or "nothing can come next"
