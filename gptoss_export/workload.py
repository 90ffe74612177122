"""A workload: many requests of different lengths, as a service has them, and how an engine serves them.

A file of a workload is a JSON object:

  name      what the report calls it
  seed      of the prompts' tokens: torch.randint(10, 200000), or below vocab_size where that is smaller
  requests  a list of {"prompt": tokens of the prompt, "output": tokens to generate}

All requests are handed in at once, and none stops early.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .errors import UsageError, raise_all
from .json_file import elements, members, read_object
from .model.dtypes import ITEM_SIZES
from .model.kv_cache import page_bytes, sequence_bytes
from .progress import Progress
from .runtime.engine import Engine
from .runtime.generation import Token
from .runtime.runner import Runner
from .runtime.slots import Slots
from .values import shown

_LOWEST, _HIGHEST = 10, 200_000  # token ids of prompts


@dataclass(frozen=True)
class Workload:
    """A workload. lengths: for each request, the tokens of its prompt and the tokens to generate."""

    name: str
    seed: int
    lengths: tuple[tuple[int, int], ...]

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """The prompts of all requests, the same each time. Imports torch, whose random numbers they are."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        low, high = min(_LOWEST, vocab_size - 1), min(_HIGHEST, vocab_size)
        return [torch.randint(low, high, (prompt,), generator=generator).tolist() for prompt, _ in self.lengths]


@dataclass(frozen=True)
class Spread:
    """The median and the 99th percentile of some seconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        ordered = sorted(seconds) or [0.0]
        return cls(*(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)))


@dataclass(frozen=True)
class WorkloadReport:
    """How a workload was served.

    seconds           from the first submission to the last token
    output_tok_s      generated tokens a second, of all requests
    first_token_s     from the submission of a request to its first token
    between_tokens_s  from a token of a request to its next one
    kv_cache_bytes    of the pages that were held at once between two steps, at most; where there are no pages, of the
                      keys and values
    """

    name: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    output_tok_s: float
    first_token_s: Spread
    between_tokens_s: Spread
    kv_cache_bytes: int


def read_workload(path: Path) -> Workload:
    """Read a file of a workload. Raises UsageError naming every value that is wrong."""
    data = read_object(path, UsageError)
    problems: list[str] = []
    lengths: list[tuple[int, int]] = []
    try:
        name, seed, requests = members(data, "name", "seed", "requests")
        for index, request in enumerate(elements(requests)):
            pair = members(request, "prompt", "output")
            if not all(type(value) is int and 0 < value < 2**31 for value in pair):
                problems.append(f"request {index}: found {shown(pair)}, expected a prompt and an output of 1 or more")
            lengths.append((pair[0], pair[1]))
    except ValueError as error:
        raise UsageError(f"{path}: not a workload ({error})") from None
    if not isinstance(name, str):
        problems.append(f"name: found {shown(name)}, expected text")
    if type(seed) is not int or not 0 <= seed < 2**63:
        problems.append(f"seed: found {shown(seed)}, expected a whole number of 0 or more")
    if not lengths:
        problems.append("requests: found none, expected one or more")
    raise_all(UsageError, f"{path}: not a workload", problems)
    return Workload(name, seed, tuple(lengths))


def check_fits(workload: Workload, slots: Slots) -> None:
    """Raise UsageError naming the requests that are longer than the context of the loaded artifact."""
    context = slots.max_context
    raise_all(
        UsageError,
        f"workload {workload.name}: requests longer than the context of {context} ({slots.limit})",
        [
            f"request {index}: {prompt} and {output} tokens"
            for index, (prompt, output) in enumerate(workload.lengths)
            if prompt + output > context + 1  # the last token is never appended
        ],
    )


def serve(runner: Runner, workload: Workload, progress: Progress) -> WorkloadReport:
    """Serve all requests of a workload that fits. Every program has run, and is captured, before the time begins.

    Raises the error of the first request that failed.
    """
    _warm_up(runner)
    manifest = runner.manifest
    prompts = workload.prompts(manifest.model.vocab_size)
    times: list[list[float]] = [[] for _ in prompts]
    engine = Engine(runner, most_waiting=len(prompts))
    held = 0
    start = time.perf_counter()
    handles = [
        engine.submit(prompt, output, stop_tokens=(), on_token=_Clock(moments))
        for prompt, (_, output), moments in zip(prompts, workload.lengths, times, strict=True)
    ]
    while engine.step():
        stats = engine.stats()
        held = max(held, _held_bytes(runner))
        progress.update(f"{stats.ended} of {len(prompts)} requests served, {stats.running} running")
    seconds = time.perf_counter() - start
    engine.close()
    for handle in handles:
        handle.result()  # raises the error of a request that failed
    tokens = sum(map(len, times))
    return WorkloadReport(
        name=workload.name,
        requests=len(prompts),
        prompt_tokens=sum(prompt for prompt, _ in workload.lengths),
        output_tokens=tokens,
        seconds=seconds,
        output_tok_s=tokens / seconds,
        first_token_s=Spread.of([moments[0] - start for moments in times]),
        between_tokens_s=Spread.of(list(_gaps(times))),
        kv_cache_bytes=held,
    )


class _Clock:
    """Notes when each token comes."""

    def __init__(self, moments: list[float]) -> None:
        self._moments = moments

    def __call__(self, _: Token) -> None:
        self._moments.append(time.perf_counter())


def _gaps(times: Sequence[Sequence[float]]) -> Iterator[float]:
    for moments in times:
        yield from (later - earlier for earlier, later in pairwise(moments))


def warm_up_calls(device: str) -> int:
    """After how many calls a prefill program is as fast as later on: the first call allocates memory, and on a GPU the
    second one captures the program, unless the first one has."""
    return 1 if device == "cpu" else 2


def _warm_up(runner: Runner) -> None:
    sizes = runner.manifest.sizes
    for width in sizes.widths:
        runner.generate_batch([[0]] * width, min(2, sizes.max_context), stop_tokens=())
    for chunk in warm_up_calls(runner.manifest.device) * sizes.prefill_chunks:
        runner.reset()
        runner.prefill([0] * min(chunk, sizes.max_context))
    runner.reset()


def _held_bytes(runner: Runner) -> int:
    manifest, pages = runner.manifest, runner.slots.pages
    itemsize = ITEM_SIZES[manifest.dtype]
    if pages is not None:
        return pages.pool.held * page_bytes(manifest.model, itemsize)
    return sum(sequence_bytes(manifest.model, length, itemsize) for length in runner.slots.lengths())
