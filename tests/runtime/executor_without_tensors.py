"""What the executors of tests share that compute no logits: the tokens alone matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_export.runtime.executor import ChunkOutput, Executor


@dataclass
class SlotOutput:
    """What a prefill knows of the token after its last one: here nothing but its slot."""

    slot: int

    @property
    def logits(self) -> Any:
        return [[0.0]]


class ExecutorWithoutTensors(Executor):
    """Has no caches, and no logits to give."""

    @property
    def kv_cache_bytes(self) -> int:
        return 0

    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> Any:
        raise NotImplementedError

    def logprobs(self, output: ChunkOutput, tokens: Sequence[int]) -> Callable[[], Any]:
        raise NotImplementedError

    def joined(self, arrays: Sequence[Any]) -> Any:
        raise NotImplementedError
