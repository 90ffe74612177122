"""The executor of rank 0: each call is told to the other ranks, then done here.

All ranks choose the tokens from the same numbers and in the same way. So nothing but calls goes from rank to rank
outside of the programs, and nothing comes back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from ..model.config import FULL, SLIDING
from ..model.sampling_state import Choice
from ..runtime.executor import (
    ChunkOutput,
    Executor,
    Outputs,
    PagedMemory,
    PageLayout,
    Part,
    PendingTokens,
    Prompt,
    Sampling,
    TableEntry,
)
from .messages import Kind, encode
from .messages import Part as Numbers

KINDS = (FULL, SLIDING)  # of layers, by their numbers in messages
OUTPUTS = tuple(Outputs)


class Followers(Protocol):
    """The other ranks."""

    def tell(self, message: bytes) -> None:
        """Send a message to all of them. Raises RunError where one of them has failed."""

    def together(self) -> AbstractContextManager[None]:
        """In this context, an error of a program is RunError with the reason of the rank that failed, and ends all
        ranks. So does an interrupt: the others may have done what this rank has not."""

    def waiting(self) -> AbstractContextManager[None]:
        """In this context, which waits for results of a call of before, errors are as in `together`. Its end raises
        RunError where the results mean nothing, because a rank did not answer."""

    def settle(self) -> None:
        """Wait until the device of this rank has done everything. Raises RunError as the end of `waiting`."""


class LeadingExecutor(Executor):
    """`executor` is that of this rank."""

    def __init__(self, executor: Executor, followers: Followers) -> None:
        self._executor, self._followers, self._do = executor, followers, partial(_do, followers)
        self.overlaps_steps, self.fixed_width = executor.overlaps_steps, executor.fixed_width
        if executor.paged_memory is not None:
            self.paged_memory = _LeadingPages(executor.paged_memory, self._do)
        self._outputs: list[ChunkOutput | None] = []  # of the last prefill

    @property
    def kv_cache_bytes(self) -> int:
        return self._executor.kv_cache_bytes

    def chunk_of(self, prompt: Prompt) -> Part:
        return self._executor.chunk_of(prompt)

    def shared_chunk_of(self, prompts: Sequence[Prompt]) -> list[Part]:
        return self._executor.shared_chunk_of(prompts)

    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        facts = part.slot, part.start, part.ends, OUTPUTS.index(outputs)
        self._outputs = []
        blocks = self._do(lambda: self._executor.prefill(part, outputs), Kind.PREFILL, facts, part.tokens)
        return self._each(blocks)

    def _each(self, blocks: Iterator[ChunkOutput]) -> Iterator[ChunkOutput]:
        while (block := self._do(lambda: next(blocks, None), Kind.NEXT_OUTPUT)) is not None:
            self._outputs.append(block)
            self._followers.settle()
            yield block

    def prefill_shared(self, parts: Sequence[Part]) -> list[ChunkOutput | None]:
        facts = [number for part in parts for number in (part.slot, part.start, part.ends, len(part.tokens))]
        tokens = [token for part in parts for token in part.tokens]
        self._outputs = self._do(lambda: self._executor.prefill_shared(parts), Kind.PREFILL_SHARED, facts, tokens)
        return self._outputs

    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> Any:
        given = list(tokens), list(tokens.values()), lengths
        logits = self._do(lambda: self._executor.decode(tokens, lengths), Kind.DECODE, *given)
        self._followers.settle()
        return logits

    def logprobs(self, output: ChunkOutput, tokens: Sequence[int]) -> Callable[[], Any]:
        return self._executor.logprobs(output, tokens)  # of an output that is there

    def joined(self, arrays: Sequence[Any]) -> Any:
        return self._executor.joined(arrays)

    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        data = json.dumps({slot: _sampling_to_json(sampling) for slot, sampling in given.items()}).encode()
        self._do(lambda: self._executor.set_sampling(given), Kind.SET_SAMPLING, data)

    def allow(self, masks: Mapping[int, bytes]) -> None:
        self._do(lambda: self._executor.allow(masks), Kind.ALLOW, list(masks), b"".join(masks.values()))

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        index = next(index for index, known in enumerate(self._outputs) if known is output)
        self._do(lambda: self._executor.keep_output(slot, output), Kind.KEEP_OUTPUT, (slot, index))

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        given = (choice,), slots, lengths
        self._do(lambda: self._executor.choose_first(slots, lengths, choice), Kind.CHOOSE_FIRST, *given)

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        self._do(lambda: self._executor.step(slots, lengths, choice), Kind.STEP, (choice,), slots, lengths)

    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        if not keep_logits:
            return _Pending(self._executor.pending_tokens(False), self._followers)
        return _Pending(self._do(lambda: self._executor.pending_tokens(True), Kind.KEPT_LOGITS), self._followers)


def _do(followers: Followers, call: Callable[[], Any], kind: Kind, *parts: Numbers) -> Any:
    """Tell a call to the other ranks, and do it here."""
    with followers.together():
        followers.tell(encode(kind, *parts))
        return call()


class _Pending(PendingTokens):
    def __init__(self, pending: PendingTokens, followers: Followers) -> None:
        self._pending, self._followers = pending, followers

    def top_logprobs(self) -> Mapping[int, Sequence[tuple[int, float]]]:
        return self._pending.top_logprobs()

    def wait(self) -> tuple[Mapping[int, int], Mapping[int, float], Mapping[int, Any] | None]:
        with self._followers.waiting():
            return self._pending.wait()


class _LeadingPages(PagedMemory):
    def __init__(self, memory: PagedMemory, do: Callable[..., Any]) -> None:
        self._memory, self._do = memory, do

    @property
    def layout(self) -> PageLayout:
        return self._memory.layout

    def set_pages(self, entries: Sequence[TableEntry]) -> None:
        if not entries:
            return
        columns = zip(*((KINDS.index(entry.kind), *entry[1:]) for entry in entries), strict=True)
        self._do(lambda: self._memory.set_pages(entries), Kind.SET_PAGES, *columns)

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        if copies:
            self._do(lambda: self._memory.copy_pages(copies), Kind.COPY_PAGES, *zip(*copies, strict=True))


def _sampling_to_json(sampling: Sampling) -> dict[str, Any]:
    """How a sequence chooses its tokens, as an object of JSON."""
    return {
        "params": dataclasses.asdict(sampling.params),
        "prompt": list(sampling.prompt),
        "tokens": list(sampling.tokens),
        "stop_tokens": sorted(sampling.stop_tokens),
    }
