"""Generates tokens: prefill each prompt, then decode all of them together until each has ended."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RunError
from .executor import ChunkOutput, Executor
from .sampling_params import SamplingParams
from .slots import Slots


@dataclass(frozen=True)
class Token:
    """A generated token.

    prompt   index of the prompt that it continues
    id       token id
    logprob  natural log of its probability, at temperature 1
    logits   [V] float32 on the host that it was chosen from, where they were asked for
    """

    prompt: int
    id: int
    logprob: float
    logits: Any = None


@dataclass
class Generation:
    """The continuation of one prompt.

    finish        "stop" (a stop token, the last of `tokens`), "length" (max_new_tokens) or "context" (the cache is
                  full)
    ttft_s        seconds from the call to the first token
    decode_tok_s  tokens a second after the first, None where there is one token only
    """

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)
    finish: str = "length"
    ttft_s: float = 0.0
    decode_tok_s: float | None = None


@dataclass(frozen=True)
class Request:
    """Checked prompts and how each is continued. Prompt i runs in slot i."""

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    sampling: Sequence[SamplingParams]
    stop_tokens: frozenset[int]
    keep_logits: bool

    @property
    def sampled(self) -> bool:
        """Whether a token of some prompt is drawn at random."""
        return any(params.temperature > 0 for params in self.sampling)


def prefill_prompt(executor: Executor, slots: Slots, slot: int, tokens: Sequence[int]) -> ChunkOutput:
    """Append tokens to a slot's sequence; the output after the last of them."""
    last: list[ChunkOutput] = []
    for chunk in executor.prefill(slot, slots.lengths()[slot], tokens, every_token=False):
        slots.extend(slot, chunk.count)
        last = list(chunk.outputs) or last
    return last[-1]


def stream(executor: Executor, slots: Slots, request: Request) -> Generator[Token, None, None]:
    """Tokens as they are chosen, those of one step in the order of their prompts. Takes over all slots when it
    starts.

    Raises RunError where the log probability of a chosen token is not finite: its sequence has met such a number.
    """
    epoch = slots.begin_call()
    for slot in range(len(slots)):
        slots.clear(slot)
    executor.set_sampling(request.sampling)
    for slot, prompt in enumerate(request.prompts):
        executor.keep_output(slot, prefill_prompt(executor, slots, slot, prompt))
    remaining = dict.fromkeys(range(len(request.prompts)), request.max_new_tokens)
    executor.choose_first(list(remaining), slots.lengths(), request.sampled)

    def step(active: list[int]) -> None:
        executor.step(active, slots.lengths(), request.sampled)
        for slot in active:
            slots.extend(slot, 1)

    while remaining:
        pending = executor.pending_tokens(request.keep_logits)
        # These go on whatever they chose, unless it is a stop token. On a GPU their next step starts now, so that it
        # does not wait for the host to read this one's tokens.
        going = [slot for slot in remaining if remaining[slot] > 1 and slots.length(slot) < slots.max_context]
        early = going if executor.overlaps_steps else []
        if early:
            step(early)
            slots.speculate(early)
        tokens, logprobs, logits = pending.wait()
        if broken := [slot for slot in remaining if not math.isfinite(logprobs[slot])]:
            slots.rollback(slots.speculated)
            raise RunError(
                f"slot {broken[0]}: the log probability of token {tokens[broken[0]]} is {logprobs[broken[0]]}, "
                "expected a finite number; a weight of the artifact is not finite, or its code is wrong"
            )
        ended = {slot for slot in going if tokens[slot] in request.stop_tokens}
        if early:
            slots.rollback(ended)
        # A generator that is closed here leaves the slots alone: another thread may be in a call, and the next call
        # rolls back what was speculated.
        for slot in remaining:
            yield Token(slot, tokens[slot], logprobs[slot], logits[slot] if request.keep_logits else None)
            slots.check_epoch(epoch)
        slots.confirm()
        remaining = {slot: remaining[slot] - 1 for slot in going if slot not in ended}
        if remaining and not early:
            step(list(remaining))


def collect(request: Request, tokens: Iterator[Token]) -> list[Generation]:
    """Run a stream to its end; one Generation a prompt."""
    generations = [Generation(list(prompt)) for prompt in request.prompts]
    start = time.perf_counter()
    last = [start] * len(generations)
    for token in tokens:
        result = generations[token.prompt]
        last[token.prompt] = time.perf_counter()
        if not result.tokens:
            result.ttft_s = last[token.prompt] - start
        result.tokens.append(token.id)
        result.logprobs.append(token.logprob)
        if token.logits is not None:
            result.logits.append(token.logits)
    for index, result in enumerate(generations):
        steps, seconds = len(result.tokens) - 1, last[index] - start - result.ttft_s
        result.decode_tok_s = steps / seconds if steps and seconds > 0 else None
        if result.tokens[-1] in request.stop_tokens:
            result.finish = "stop"
        elif len(result.tokens) < request.max_new_tokens:
            result.finish = "context"
    return generations
