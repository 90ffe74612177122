"""Generated tokens as a caller gets them: one at a time, or all of a prompt with their times."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .executor import Executor
from .running_sequence import NewToken, Request
from .scheduler import Scheduler
from .slots import Slots


@dataclass(frozen=True)
class Token:
    """A generated token.

    prompt   index of the prompt that it continues
    id       token id
    logprob  natural log of its probability, at temperature 1
    logits   [V] float32 on the host that it was chosen from, where they were asked for
    top_logprobs  the most likely tokens and their log probabilities, as many as were asked for
    """

    prompt: int
    id: int
    logprob: float
    logits: Any = None
    top_logprobs: Sequence[tuple[int, float]] = ()

    @classmethod
    def of(cls, prompt: int, token: NewToken) -> Token:
        return cls(prompt, token.id, token.logprob, token.logits, token.top_logprobs)


@dataclass
class Generation:
    """The continuation of one prompt.

    finish        "stop" (a stop token, the last of `tokens`, or `ends` said so), "length" (max_new_tokens), "context"
                  (the cache is full), or "cancelled"
    top_logprobs  for each token, as many as were asked for
    reused_tokens tokens of the prompt that an engine found in the cache and did not compute again
    ttft_s        seconds from the call to the first token
    decode_tok_s  tokens a second after the first, None where there is one token only
    """

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)
    top_logprobs: list[Sequence[tuple[int, float]]] = field(default_factory=list)
    finish: str = "length"
    reused_tokens: int = 0
    ttft_s: float = 0.0
    decode_tok_s: float | None = None


class GenerationRecord:
    """Collects the tokens of a prompt as they come, with their times. `start`: time.perf_counter() of the call."""

    def __init__(self, prompt: Sequence[int], start: float) -> None:
        self.generation = Generation(list(prompt))
        self._start = self._last = start

    def add(self, token: Token) -> None:
        """A token that comes now."""
        result = self.generation
        self._last = time.perf_counter()
        if not result.tokens:
            result.ttft_s = self._last - self._start
        result.tokens.append(token.id)
        result.logprobs.append(token.logprob)
        if token.logits is not None:
            result.logits.append(token.logits)
        if token.top_logprobs:
            result.top_logprobs.append(token.top_logprobs)

    def end(self, finish: str) -> Generation:
        """All of it."""
        result = self.generation
        steps, seconds = len(result.tokens) - 1, self._last - self._start - result.ttft_s
        result.decode_tok_s = steps / seconds if steps > 0 and seconds > 0 else None
        result.finish = finish
        return result


def stream(executor: Executor, slots: Slots, requests: Sequence[Request]) -> Generator[Token, None, list[str]]:
    """Tokens as they are chosen, those of one step in the order of their prompts; returns why each prompt ended. All
    prompts are prefilled first. Takes over all slots when it starts.

    Raises the error of the first sequence that fails.
    """
    scheduler = Scheduler(executor, slots, serving=False)
    sequences = [scheduler.add(request) for request in requests]
    indices = {sequence: index for index, sequence in enumerate(sequences)}
    while scheduler.busy:
        result = scheduler.step()
        for sequence in result.ended:
            if sequence.error is not None:
                slots.rollback(slots.speculated)
                raise sequence.error
        # A generator that is closed here leaves the slots alone: another thread may be in a call, and the next call
        # rolls back what was speculated.
        for token in result.tokens:
            yield Token.of(indices[token.sequence], token)
            scheduler.check_owner()
    return [sequence.finish or "" for sequence in sequences]


def collect(requests: Sequence[Request], tokens: Generator[Token, None, list[str]]) -> list[Generation]:
    """Run a stream to its end; one Generation a prompt."""
    start = time.perf_counter()
    records = [GenerationRecord(request.prompt, start) for request in requests]
    while True:
        try:
            token = next(tokens)
        except StopIteration as ended:
            return [record.end(finish) for record, finish in zip(records, ended.value, strict=True)]
        records[token.prompt].add(token)
