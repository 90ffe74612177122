"""Executor: what a target loads and a runner drives.

An executor holds the compiled code, the weights and the KV caches of all slots. It computes and keeps no lengths:
each call says where a slot's sequence stands. A slot is one sequence's place in the KV caches.

Arrays are torch tensors where the target needs torch to run, and numpy arrays where it does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .sampling_params import SamplingParams


class ChunkOutput(Protocol):
    """What a prefill knows of the tokens after its own."""

    @property
    def logits(self) -> Any:
        """[n, V] float32: one row for each token."""

    def logprob(self, tokens: Any) -> Any:
        """Natural log of the probability, at temperature 1, of one token a row: tokens [n] to [n] float32."""


@dataclass(frozen=True)
class PrefilledChunk:
    """A chunk whose keys and values are in the cache: how many tokens it had, and the outputs that were asked for."""

    count: int
    outputs: Iterator[ChunkOutput]


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt that are not yet in the cache, and where they go: behind the first `start` of a slot."""

    slot: int
    start: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class PrefilledPart:
    """Tokens of a prompt that are in the cache now: how many of its first ones, and the output after its last token
    if it is among them."""

    slot: int
    count: int
    output: ChunkOutput | None


class PendingTokens(ABC):
    """The tokens of a step on their way to the host; the next step may already run."""

    @abstractmethod
    def wait(self) -> tuple[Mapping[int, int], Mapping[int, float], Mapping[int, Any] | None]:
        """Tokens and log probabilities by slot, and the logits [V] each was chosen from (None unless kept)."""


class Executor(ABC):
    """Computes prefills and decode steps over `max_batch` slots."""

    overlaps_steps: bool = False  # whether the next step may start before the host has this one's tokens
    fixed_width: bool = False  # whether every call runs the largest program of its kind, whatever takes part in it
    ring_rows: int = 0  # positions that the caches of sliding layers keep; 0: all positions

    @property
    @abstractmethod
    def kv_cache_bytes(self) -> int:
        """Memory of the KV caches."""

    @abstractmethod
    def prefill(self, slot: int, start: int, tokens: Sequence[int], every_token: bool) -> Iterator[PrefilledChunk]:
        """Append tokens behind the first `start` of a slot's sequence, chunk by chunk.

        every_token: each chunk has outputs for each of its tokens. Otherwise only the last chunk has one, for the last
        token. Outputs are read before the next chunk is asked for.
        """

    def prefill_shared(self, prompts: Sequence[Prompt]) -> list[PrefilledPart]:
        """Compute one chunk, with the next tokens of as many prompts as fit, in their order. At least the first prompt
        has tokens in it.

        Here a chunk holds tokens of one prompt.
        """
        first = prompts[0]
        chunk = next(self.prefill(first.slot, first.start, first.tokens, every_token=False))
        *_, output = [None, *chunk.outputs]
        return [PrefilledPart(first.slot, chunk.count, output if chunk.count == len(first.tokens) else None)]

    @abstractmethod
    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> Any:
        """Append one token to some slots' sequences, whose lengths are given for all slots; logits [B, V] float32.
        Rows of other slots mean nothing."""

    @abstractmethod
    def to_host(self, arrays: Sequence[Any]) -> Any:
        """Join arrays [n] along their only dimension, on the host."""

    @abstractmethod
    def token_array(self, tokens: Sequence[int]) -> Any:
        """Token ids as `ChunkOutput.logprob` takes them."""

    # Generation: the executor keeps the logits and chooses the tokens itself, in this order of calls.

    @abstractmethod
    def set_sampling(self, params: Mapping[int, SamplingParams]) -> None:
        """How some slots choose their tokens from now on."""

    @abstractmethod
    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        """Keep a prompt's last output: the slot's first token is chosen from it."""

    @abstractmethod
    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        """Choose the first token of each slot from the kept outputs. sampled False: the most likely tokens."""

    @abstractmethod
    def step(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        """Append the chosen tokens of `slots` to their sequences and choose the next ones. `lengths` are those
        before."""

    @abstractmethod
    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        """The tokens chosen last."""
