"""The model that a server serves, and what a request may ask of it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..harmony.vocabulary import HarmonyTokenizer
from ..structure.structures import Structures
from .engine_health import WatchedEngine
from .errors import ApiError, invalid
from .token_bytes import TokenBytes


@dataclass(frozen=True)
class ServedModel:
    """An engine with its tokenizer.

    name         what clients call the model
    context      tokens that a prompt and its answer can have together
    vocab_size   tokens of the model
    stop_tokens  of the artifact; those of the chat format end a conversation's answer too
    created      seconds since 1970
    today        the day that the model is told
    adapters     gives the names of the loaded adapters, which clients choose as models
    token_bytes  the bytes of tokens
    """

    name: str
    engine: WatchedEngine
    tokenizer: HarmonyTokenizer
    structures: Structures
    context: int
    vocab_size: int
    stop_tokens: tuple[int, ...]
    created: int = field(default_factory=lambda: int(time.time()))
    today: Callable[[], datetime.date] = datetime.date.today
    adapters: Callable[[], tuple[str, ...]] = tuple
    token_bytes: TokenBytes = field(init=False)

    def __post_init__(self) -> None:
        # Now, and not for the first request: other threads hardly run meanwhile.
        object.__setattr__(self, "token_bytes", TokenBytes(self.tokenizer))

    @property
    def answer_stops(self) -> tuple[int, ...]:
        """The tokens that end an answer in the chat format."""
        return tuple(dict.fromkeys((*self.tokenizer.stop_tokens, *self.stop_tokens)))

    @property
    def names(self) -> tuple[str, ...]:
        """What clients can ask for: the model, and it with each adapter."""
        return (self.name, *self.adapters())

    def adapter_of(self, name: str) -> str | None:
        """The adapter that a client chooses by the name of a model; None: the model alone. Raises ApiError where there
        is none of that name."""
        names = self.names
        if name not in names:
            expected = ", ".join(map(repr, names))
            said = f"{expected}, the one model of this server" if len(names) == 1 else f"one of {expected}"
            raise ApiError(404, f"model: found {name!r}, expected {said}", param="model", code="model_not_found")
        return None if name == self.name else name

    def check_bytes(self, texts: Iterable[str], param: str) -> None:
        """Raise ApiError for texts that cannot fit into the context, whatever their tokens are. Making millions of
        tokens would take seconds."""
        size = sum(len(text.encode()) for text in texts)
        least = -(-size // self.token_bytes.longest)
        if least >= self.context:
            raise invalid(
                param,
                f"found {size} bytes, which are {least} tokens or more, expected fewer than {self.context}, the "
                "model's context for a prompt and its answer; send less",
                "context_length_exceeded",
            )

    def check_room(self, prompt_tokens: int, param: str) -> None:
        """Raise ApiError where a prompt leaves no room for a token of the answer."""
        if prompt_tokens >= self.context:
            raise invalid(
                param,
                f"found {prompt_tokens} tokens, expected fewer than {self.context}, the model's context for a prompt "
                "and its answer; send less",
                "context_length_exceeded",
            )

    def new_tokens(self, asked: int | None, most: int | None, param: str) -> int:
        """Most tokens of an answer. most: that of the server. Raises ApiError where a request asks for more."""
        if asked is None:
            return most or self.context
        if most is not None and asked > most:
            raise invalid(param, f"found {asked}, expected {most} at most; ask for fewer tokens")
        return min(asked, self.context)
