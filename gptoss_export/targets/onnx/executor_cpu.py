"""Runs an ONNX artifact with onnxruntime on a CPU. Arrays are numpy's; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...artifact.manifest import Manifest
from ...model.sampling_state import MOST_TOP_LOGPROBS, Choice
from ...runtime.adjust_numpy import Adjustment
from ...runtime.executor import ChunkOutput, Executor, Outputs, Part, PendingTokens, Prompt, Sampling
from ...runtime.sampler_numpy import choose, logprob, most_likely
from ...runtime.sampling_params import SamplingParams
from .model_cpu import CpuModel
from .session import run_errors


@dataclass(frozen=True)
class NumpyOutput:
    """The logits [n, V] float32 of some tokens, and the log probabilities that follow from them."""

    logits: np.ndarray


@dataclass(frozen=True)
class NumpyPendingTokens(PendingTokens):
    """Tokens [B], log probabilities [B] and, where they are kept, logits [B, V] of all slots. All are on the host."""

    tokens: np.ndarray
    logprobs: np.ndarray
    logits: np.ndarray | None
    top: Mapping[int, Sequence[tuple[int, float]]]

    def top_logprobs(self) -> Mapping[int, Sequence[tuple[int, float]]]:
        return self.top

    def wait(self) -> tuple[dict[int, int], dict[int, float], dict[int, np.ndarray] | None]:
        tokens, logprobs = (dict(enumerate(values.tolist())) for values in (self.tokens, self.logprobs))
        return tokens, logprobs, None if self.logits is None else dict(enumerate(self.logits))


class CpuExecutor(Executor):
    """Prefills and decode steps over a model; tokens are chosen on the host."""

    def __init__(self, manifest: Manifest, model: CpuModel) -> None:
        slots, vocabulary = manifest.sizes.max_batch, manifest.model.vocab_size
        self.model = model
        self._chunk = max(manifest.sizes.prefill_chunks)
        self._params = [SamplingParams()] * slots
        self._sampling: dict[int, Sampling] = {}
        self._adjustments: dict[int, Adjustment] = {}  # of the slots that have needed one
        self._top: dict[int, list[tuple[int, float]]] = {}
        # What the next choice of each slot is made from, and the last choice.
        self._logits = np.zeros((slots, vocabulary), np.float32)
        self._tokens = np.zeros(slots, np.int64)
        self._logprobs = np.zeros(slots, np.float32)

    @property
    def kv_cache_bytes(self) -> int:
        return self.model.kv_cache_bytes

    def chunk_of(self, prompt: Prompt) -> Part:
        """Chunks bound the memory of the logits; the model itself takes any number of tokens."""
        return prompt.first(self._chunk)

    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        logits = self.model.prefill(part.tokens, part.slot, part.start, last_only=outputs != Outputs.EVERY)
        return iter([] if outputs == Outputs.NONE else [NumpyOutput(logits)])

    @run_errors()
    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> np.ndarray:
        return self.model.decode(tokens, lengths) if tokens else np.zeros_like(self._logits)

    def logprobs(self, output: ChunkOutput, tokens: Sequence[int]) -> Callable[[], np.ndarray]:
        return partial(_logprobs, output.logits, tokens)

    @run_errors()
    def joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(arrays))

    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        for slot, sampling in given.items():
            self._params[slot], self._sampling[slot] = sampling.params, sampling
            self._adjustments.pop(slot, None)

    @run_errors()
    def allow(self, masks: Mapping[int, bytes]) -> None:
        for slot, mask in masks.items():
            self._adjustment(slot).allow(mask)

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        self._logits[slot] = output.logits[0]

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        self._choose(slots, [length - 1 for length in lengths], choice)

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        chosen = list(slots)
        self._logits[chosen] = self.decode({slot: int(self._tokens[slot]) for slot in slots}, lengths)[chosen]
        self._choose(slots, lengths, choice)

    @run_errors()
    def pending_tokens(self, keep_logits: bool) -> NumpyPendingTokens:
        logits = self._logits.copy() if keep_logits else None
        return NumpyPendingTokens(self._tokens.copy(), self._logprobs.copy(), logits, dict(self._top))

    def _adjustment(self, slot: int) -> Adjustment:
        if slot not in self._adjustments:
            self._adjustments[slot] = Adjustment(self._sampling[slot], self._logits.shape[1])
        return self._adjustments[slot]

    @run_errors()
    def _choose(self, slots: Sequence[int], positions: Sequence[int], choice: Choice) -> None:
        """Choose the next token of each slot; `positions` are those of the last tokens of all slots."""
        chosen = list(slots)
        logits, last = self._logits[chosen], [positions[slot] for slot in chosen]
        params = {row: self._params[slot] for row, slot in enumerate(chosen)} if choice else {}
        if choice == Choice.ADJUSTED:
            adjusting = [self._adjustment(slot) for slot in chosen]
            changed = np.stack([each.apply(*row) for each, *row in zip(adjusting, logits, last, strict=True)])
            tokens, _ = choose(changed, last, params)
            logprobs = logprob(logits, tokens)
            for each, token in zip(adjusting, tokens.tolist(), strict=True):
                each.count(token)
            self._top = dict(zip(chosen, most_likely(logits, MOST_TOP_LOGPROBS), strict=True))
        else:
            self._top = {}
            tokens, logprobs = choose(logits, last, params)
        self._tokens[chosen], self._logprobs[chosen] = tokens, logprobs  # those of other slots stay


@run_errors()
def _logprobs(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    return logprob(logits, np.array(tokens, np.int64))
