"""What a scheduler works on: a request, the sequence that continues it, a token of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from ..model.sampling_state import Choice
from .adapter_memory import LoadedAdapter
from .sampling_params import SamplingParams


@dataclass(frozen=True)
class Request:
    """A checked prompt and how it is continued.

    prompt          at least one token id of the model
    max_new_tokens  it ends after so many tokens
    stop_tokens     it ends after one of these
    keep_logits     whether each token comes with the logits that it was chosen from
    allowed         gets the tokens of the answer so far (TokensSoFar), and gives the tokens that can be next: a bit for
                    each, in little-endian words of 32; None: all tokens, always
    ends            gets the tokens of the answer so far, after each one, and says whether it ends there
    adapter         that it is computed with; None: the model alone
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams
    stop_tokens: frozenset[int]
    keep_logits: bool = False
    allowed: Callable[[Sequence[int]], bytes] | None = None
    ends: Callable[[Sequence[int]], bool] | None = None
    adapter: LoadedAdapter | None = None

    @property
    def choice(self) -> Choice:
        """How its tokens are chosen."""
        if self.sampling.adjusts or self.allowed is not None:
            return Choice.ADJUSTED
        if self.sampling.temperature == 0:
            return Choice.MOST_LIKELY
        return Choice.LIMITED if self.sampling.limits else Choice.DRAWN


class TokensSoFar(Sequence[int]):
    """The tokens of an answer, read only, which grow with it. Copies for each token would take longer and longer."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> list[int]: ...

    def __getitem__(self, at: int | slice) -> int | list[int]:
        return self._tokens[at]

    def __len__(self) -> int:
        return len(self._tokens)


@dataclass(eq=False)
class RunningSequence:
    """A request on its way.

    slot      its slot, if it has one
    prompt    what is prefilled: the request's prompt, and after it was set back also its tokens until then
    cached    tokens of `prompt` that are in the cache
    reused    tokens of the request's prompt that the cache knew when it first got a slot; None before
    started   tokens that were chosen or are being chosen
    tokens    those that the host knows
    so_far    the same, as a request's functions get them
    finish    why it ended: "stop" (a stop token), "length" (max_new_tokens), "context" (the cache is full), "cancelled"
              or "error"; None while it has not ended
    error     what it failed with
    """

    request: Request
    slot: int | None = None
    cached: int = 0
    reused: int | None = None
    started: int = 0
    finish: str | None = None
    error: Exception | None = None
    prompt: Sequence[int] = field(init=False)
    tokens: list[int] = field(default_factory=list)
    so_far: TokensSoFar = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = self.request.prompt
        self.so_far = TokensSoFar(self.tokens)

    @property
    def has_prompt(self) -> bool:
        """Whether its whole prompt is in the cache."""
        return self.cached == len(self.prompt)


@dataclass(frozen=True)
class NewToken:
    """A token that was chosen for a sequence.

    logprob       natural log of its probability, at temperature 1
    logits        [V] float32 on the host that it was chosen from, where they were asked for
    top_logprobs  the most likely tokens and their log probabilities, as many as were asked for
    """

    sequence: RunningSequence
    id: int
    logprob: float
    logits: Any = None
    top_logprobs: Sequence[tuple[int, float]] = ()
