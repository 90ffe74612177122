"""Generating text's tokens from prompts: prefill each, then decode all together until each has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from .sampling_params import Sampling

if TYPE_CHECKING:
    from .runner import Runner


@dataclass(frozen=True)
class Token:
    """A generated token: which prompt it belongs to, its id, its log probability at temperature 1.

    logits [V] float32 on the CPU, what it was chosen from, where they were asked for: a tensor, or an array where the
    runner needs no torch.
    """

    prompt: int
    id: int
    logprob: float
    logits: Any = None


@dataclass
class Generation:
    """What came out for one prompt. finish: "stop" (a stop token, which is the last of tokens), "length"
    (max_new_tokens) or "context" (the cache is full). Times are seconds since the call and tokens a second."""

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)
    finish: str = "length"
    ttft_s: float = 0.0
    decode_tok_s: float | None = None


def stream(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sequence[Sampling],
    stop_tokens: frozenset[int],
    keep_logits: bool,
) -> Iterator[Token]:
    """Tokens as they are chosen, the sequences of a step in order of their prompts."""
    claim = runner._begin(sampling)
    sampled = any(options.temperature > 0 for options in sampling)
    for slot, prompt in enumerate(prompts):
        runner._start(slot, prompt)
    active = dict.fromkeys(range(len(prompts)), max_new_tokens)
    runner._choose(list(active), sampled)
    while active:
        reading = runner._reading(keep_logits)
        # Those that go on whatever they drew, unless it ends their text: on a GPU their next step starts now,
        # so that it does not wait for the host to have read this one.
        going = [slot for slot in active if active[slot] > 1 and runner.length(slot) < runner.manifest.max_context]
        early = going if runner._overlaps else []
        if early:
            runner._next(early, sampled)
            runner._ahead = set(early)  # until their tokens are taken; another call takes them back
        tokens, logprobs, logits = reading.wait()
        ended = {slot for slot in going if tokens[slot] in stop_tokens}
        if early:
            runner._take_back(ended)
        try:
            for slot in active:
                yield Token(slot, tokens[slot], logprobs[slot], logits[slot] if keep_logits else None)
                runner._check_claim(claim)
        except GeneratorExit:  # the caller wants no more
            if runner._claims == claim:
                runner._take_back(runner._ahead)
            raise
        runner._ahead = set()
        active = {slot: active[slot] - 1 for slot in going if slot not in ended}
        if active and not early:
            runner._next(list(active), sampled)


def collect(
    prompts: Sequence[Sequence[int]], tokens: Iterator[Token], stop_tokens: frozenset[int], max_new_tokens: int
) -> list[Generation]:
    """Run a stream to its end, one Generation a prompt."""
    generations = [Generation(list(prompt)) for prompt in prompts]
    start = time.perf_counter()
    last = [start] * len(prompts)
    for token in tokens:
        result = generations[token.prompt]
        last[token.prompt] = time.perf_counter()
        if not result.tokens:
            result.ttft_s = last[token.prompt] - start
        result.tokens.append(token.id)
        result.logprobs.append(token.logprob)
        if token.logits is not None:
            result.logits.append(token.logits)
    for slot, result in enumerate(generations):
        steps, seconds = len(result.tokens) - 1, last[slot] - start - result.ttft_s
        result.decode_tok_s = steps / seconds if steps and seconds > 0 else None
        if result.tokens[-1] in stop_tokens:
            result.finish = "stop"
        elif len(result.tokens) < max_new_tokens:
            result.finish = "context"
    return generations


def check_request(runner: Runner, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise RunError where prompts do not fit the artifact."""
    limit = runner.manifest
    if not 1 <= len(prompts) <= limit.max_batch:
        raise RunError(
            f"{len(prompts)} prompts: this artifact runs 1 to {limit.max_batch} at a time (--max-batch of its build)"
        )
    if max_new_tokens < 1:
        raise RunError(f"max_new_tokens: found {max_new_tokens}, expected 1 or more")
