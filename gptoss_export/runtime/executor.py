"""Executor: what a target loads and a runner drives.

An executor holds the compiled code, the weights and the KV caches of all slots. It computes and keeps no lengths:
each call says where a slot's sequence stands. A slot is one sequence's place in the KV caches.

Arrays are torch tensors where the process has imported torch or the target needs it. Otherwise they are arrays of
numpy, or of `without_torch` on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from ..model.sampling_state import Choice
from .adapter_memory import AdapterMemory
from .sampling_params import SamplingParams


class ChunkOutput(Protocol):
    """What a prefill knows of the tokens after its own."""

    @property
    def logits(self) -> Any:
        """[n, V] float32: one row for each token."""


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt that are not yet in the cache, and where they go: behind the first `start` of a slot."""

    slot: int
    start: int
    tokens: Sequence[int]

    def first(self, count: int) -> Part:
        """Its first `count` tokens, or all where it has fewer."""
        return Part(self.slot, self.start, self.tokens[:count], ends=count >= len(self.tokens))


@dataclass(frozen=True)
class Part(Prompt):
    """Tokens of a prompt that go into one chunk. ends: whether the prompt's last token is among them."""

    ends: bool


class Outputs(Enum):
    """Which outputs of a chunk are wanted: after none of its tokens, after the last one, after every one."""

    NONE = "none"
    LAST = "last"
    EVERY = "every"


@dataclass(frozen=True)
class Sampling:
    """How a sequence chooses its next tokens.

    prompt, tokens  its tokens so far: those of the request and those that were chosen
    """

    params: SamplingParams
    prompt: Sequence[int] = ()
    tokens: Sequence[int] = ()
    stop_tokens: frozenset[int] = frozenset()


class PendingTokens(ABC):
    """The tokens of a step on their way to the host; the next step may already run."""

    def top_logprobs(self) -> Mapping[int, Sequence[tuple[int, float]]]:
        """By slot, the most likely tokens with their log probabilities, after `wait`. Empty unless the choice was
        ADJUSTED."""
        return {}

    @abstractmethod
    def wait(self) -> tuple[Mapping[int, int], Mapping[int, float], Mapping[int, Any] | None]:
        """Tokens and log probabilities by slot, and the logits [V] each was chosen from (None unless kept)."""


@dataclass(frozen=True)
class PageLayout:
    """The pages of a KV cache (model/kv_cache.py).

    page    positions of a page
    pages   of the pool, with the scratch page
    full    whether there are layers that see all positions
    window  positions that sliding layers see; 0: there are none
    chunk   the most tokens that one call appends to a sequence
    """

    page: int
    pages: int
    full: bool
    window: int
    chunk: int


class TableEntry(NamedTuple):
    """Page `page` holds the positions of entry `at` of a slot, in layers of one kind."""

    kind: str
    slot: int
    at: int
    page: int


class PagedMemory(ABC):
    """The pages of a KV cache on the device. Changes take effect for the calls that follow."""

    @property
    @abstractmethod
    def layout(self) -> PageLayout:
        """What the pool is made of."""

    @abstractmethod
    def set_pages(self, entries: Sequence[TableEntry]) -> None:
        """Change entries of the tables."""

    @abstractmethod
    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the contents of pages, from and to."""


class Executor(ABC):
    """Computes prefills and decode steps over `max_batch` slots.

    The caller has reserved the pages of the positions that a call writes, where `paged_memory` is not None. Otherwise
    each slot has a cache for the whole context.
    """

    overlaps_steps: bool = False  # whether the next step may start before the host has this one's tokens
    fixed_width: bool = False  # whether every call runs the largest program of its kind, whatever takes part in it
    paged_memory: PagedMemory | None = None
    adapter_memory: AdapterMemory | None = None  # of an artifact with adapter slots

    @property
    @abstractmethod
    def kv_cache_bytes(self) -> int:
        """Memory of the KV caches."""

    @abstractmethod
    def chunk_of(self, prompt: Prompt) -> Part:
        """The tokens of a prompt that one call of `prefill` takes."""

    @abstractmethod
    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        """Append the tokens of a chunk to a sequence. They are appended when this returns.

        The outputs come in blocks of rows, in the order of the tokens. They are read before the next call.
        """

    def shared_chunk_of(self, prompts: Sequence[Prompt]) -> list[Part]:
        """The tokens that one call of `prefill_shared` takes: the next ones of as many prompts as fit, in their order,
        of the first one at least.

        Here a chunk holds tokens of one prompt.
        """
        return [self.chunk_of(prompts[0])]

    def prefill_shared(self, parts: Sequence[Part]) -> list[ChunkOutput | None]:
        """Compute a chunk that `shared_chunk_of` has made, or one with some of its parts. Returns the output after the
        last token of each prompt that ends in it."""
        (part,) = parts
        *_, output = [None, *self.prefill(part, Outputs.LAST if part.ends else Outputs.NONE)]
        return [output]

    @abstractmethod
    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> Any:
        """Append one token to some slots' sequences, whose lengths are given for all slots; logits [B, V] float32.
        Rows of other slots mean nothing."""

    @abstractmethod
    def logprobs(self, output: ChunkOutput, tokens: Sequence[int]) -> Callable[[], Any]:
        """Natural log of the probability, at temperature 1, of one token for each row of an output. Calling the result
        waits for the device and gives [n] float32 on the host."""

    @abstractmethod
    def joined(self, arrays: Sequence[Any]) -> Any:
        """Arrays [n] of the host as one."""

    # Generation: the executor keeps the logits and chooses the tokens itself, in this order of calls.

    @abstractmethod
    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        """How some slots choose their tokens from now on."""

    @abstractmethod
    def allow(self, masks: Mapping[int, bytes]) -> None:
        """The tokens that some slots can choose next, and from then on: a bit for each token, in little-endian words
        of 32. `set_sampling` allows all."""

    @abstractmethod
    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        """Keep a prompt's last output: the slot's first token is chosen from it."""

    @abstractmethod
    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        """Choose the first token of each slot from the kept outputs."""

    @abstractmethod
    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        """Append the chosen tokens of `slots` to their sequences and choose the next ones. `lengths` are those
        before."""

    @abstractmethod
    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        """The tokens chosen last."""
