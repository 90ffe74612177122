"""Answers in tokens: texts with control tokens, what a mask allows, and random answers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_export.errors import UsageError
from gptoss_export.harmony.messages import Message
from gptoss_export.harmony.parsing import AnswerParser
from gptoss_export.harmony.vocabulary import CONTROL_TOKENS, HarmonyTokenizer
from gptoss_export.structure.formats import JsonSchema
from gptoss_export.structure.structures import Structures

Allowed = Callable[[Sequence[int]], bytes]
_CONTROL = re.compile("(" + "|".join(map(re.escape, CONTROL_TOKENS.values())) + ")")


def tokens_of(control: HarmonyTokenizer, text: str) -> list[int]:
    """The tokens of a text in which control tokens are written by their names."""
    ids = {token: getattr(control, field) for field, token in CONTROL_TOKENS.items()}
    parts = [part for part in _CONTROL.split(text) if part]
    return [token for part in parts for token in ([ids[part]] if part in ids else control.encode(part))]


def text_of(control: HarmonyTokenizer, tokens: Sequence[int]) -> str:
    return control.tokenizer.decode(list(tokens), skip_special_tokens=False)


def has(mask: bytes, token: int) -> bool:
    return bool(mask[token // 8] >> token % 8 & 1)


def allowed_ids(mask: bytes) -> list[int]:
    return [
        8 * found.start() + bit
        for found in re.finditer(rb"[^\0]", mask, re.DOTALL)
        for bit in range(8)
        if mask[found.start()] >> bit & 1
    ]


def refused(allowed: Allowed, tokens: Sequence[int]) -> int | None:
    """The index of the first token that its mask does not allow."""
    for index, token in enumerate(tokens):
        if not has(allowed(tokens[:index]), token):
            return index
    return None


def accepts(allowed: Allowed, control: HarmonyTokenizer, text: str) -> bool:
    return refused(allowed, tokens_of(control, text)) is None


@dataclass
class RandomAnswer:
    """Chooses tokens at random until an answer ends. After `hurry` tokens it mostly takes the ends of texts.

    `messages` is what the parser of harmony reads in it.
    """

    control: HarmonyTokenizer
    seed: int
    hurry: int = 60
    longest: int = 3000

    def of(self, allowed: Allowed) -> list[int]:
        chance = random.Random(self.seed)
        ends = [self.control.return_, self.control.call, self.control.end, self.control.channel]
        ends += [self.control.encode(text)[0] for text in ('"', "@", "}", "]")]
        final = self.control.encode("final")[0]
        tokens: list[int] = []
        while len(tokens) < self.longest:
            mask = allowed(tokens)
            likely = [token for token in ends if has(mask, token)]
            if tokens[-1:] == [self.control.channel] and has(mask, final):
                likely.append(final)
            if likely and chance.random() < (0.8 if len(tokens) > self.hurry else 0.3):
                token = likely[0]
            else:
                token = self._any(mask, chance)
            tokens.append(token)
            if token in self.control.stop_tokens:
                return tokens
        raise AssertionError(f"no end after {self.longest} tokens: {text_of(self.control, tokens)[-200:]!r}")

    @staticmethod
    def _any(mask: bytes, chance: random.Random) -> int:
        for _ in range(10):  # the fast way where most tokens are allowed
            token = chance.randrange(8 * len(mask))
            if has(mask, token):
                return token
        return chance.choice(allowed_ids(mask))


def messages_of(control: HarmonyTokenizer, tokens: Sequence[int]) -> list[Message]:
    parser = AnswerParser(control)
    for token in tokens:
        parser.push(token)
    assert parser.finished
    return parser.messages


def prefixes(tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    for length in range(len(tokens) + 1):
        yield tokens[:length]


def refusal(structures: Structures, schema: Any, strict: bool = True) -> str:
    """The error for a schema; "" where there is none."""
    try:
        structures.of_answer(JsonSchema(schema, strict, "text.format.schema"))
    except UsageError as error:
        return str(error)
    return ""
