"""Runs one model whose runtime has calls of its own, on the host. Needs numpy, no torch.

The model works on the host, so that a step is a call, its logits are an array, and the next token is chosen from it
(chooser.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RunError
from ...artifact.manifest import Manifest
from ...progress import Steps
from ...targets import Target
from ...runtime.sampler_numpy import choose, logprob
from ...runtime.runner import Runner
from ...runtime.sampling_params import Sampling


class _Reading:
    """What was chosen last, as `generating.stream` reads it."""

    def __init__(self, tokens: np.ndarray, logprobs: np.ndarray, logits: np.ndarray | None) -> None:
        self._results = tokens.tolist(), logprobs.tolist(), logits

    def wait(self) -> tuple[list[int], list[float], np.ndarray | None]:
        return self._results


class HostSessionRunner(Runner):
    """A Runner over a model with `run` and `step` (targets/onnx/host.py)."""

    @classmethod
    def _open(cls, manifest: Manifest, folder: Path, target: Target, steps: Steps, own_process: bool) -> HostSessionRunner:
        with steps.step("load the model"):
            return cls(manifest, folder, target.load(manifest, folder, None))

    def __init__(self, manifest: Manifest, folder: Path, model: Any) -> None:
        super().__init__(manifest, folder)
        self._model = model
        self._options = [Sampling()] * manifest.max_batch
        self._logits = np.zeros((manifest.max_batch, manifest.model.vocab_size), np.float32)
        self._tokens = np.zeros(manifest.max_batch, np.int64)
        self._logprobs = np.zeros(manifest.max_batch, np.float32)

    def prefill(self, tokens: Sequence[int], slot: int = 0) -> np.ndarray:
        ids = self._prompt(tokens, slot)
        self._claim()
        return self._last(ids, slot)

    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[np.ndarray]:
        return self._blocks(self._prompt(tokens, slot), slot, self._claim())

    def score(self, tokens: Sequence[int], slot: int = 0) -> np.ndarray:
        if len(tokens) < 2:
            raise RunError(f"score: found {len(tokens)} tokens, expected 2 or more")
        ids = self._prompt(tokens, slot, fresh=True)
        self.reset(slot)
        following, row, scores = np.array([*ids[1:], 0]), 0, []
        for logits in self._blocks(ids, slot, self._claim()):
            scores.append(logprob(logits, following[row : row + len(logits)]))
            row += len(logits)
        return np.concatenate(scores)[:-1]

    def _cache_bytes(self) -> int:
        return self._model.cache_bytes

    def _decode(self, ids: dict[int, int]) -> np.ndarray:
        if not ids:
            return np.zeros_like(self._logits)
        logits = self._model.step(ids, [slot.length for slot in self._slots])
        for slot in ids:
            self._slots[slot].extend(1)
        return logits

    def _set(self, options: Sequence[Sampling]) -> None:
        self._options[: len(options)] = options

    def _start(self, slot: int, prompt: Sequence[int]) -> None:
        self._logits[slot] = self._last(prompt, slot)

    def _choose(self, slots: Sequence[int], sampled: bool) -> None:
        positions = [self._slots[slot].length - 1 for slot in range(len(self._slots))]
        options = {slot: self._options[slot] for slot in slots} if sampled else {}
        self._tokens, self._logprobs = choose(self._logits, positions, options)

    def _next(self, slots: Sequence[int], sampled: bool) -> None:
        self._logits = self._decode({slot: int(self._tokens[slot]) for slot in slots})
        self._choose(slots, sampled)

    def _reading(self, keep_logits: bool) -> _Reading:
        return _Reading(self._tokens, self._logprobs, self._logits.copy() if keep_logits else None)

    def _last(self, ids: Sequence[int], slot: int) -> np.ndarray:
        for logits in self._pieces(ids, slot, last=True):
            pass
        return logits[0]

    def _blocks(self, ids: Sequence[int], slot: int, claim: int) -> Iterator[np.ndarray]:
        self._check_claim(claim)
        for logits in self._pieces(ids, slot, last=False):
            yield logits
            self._check_claim(claim)

    def _pieces(self, ids: Sequence[int], slot: int, last: bool) -> Iterator[np.ndarray]:
        """Prefill in chunks, which bound the memory of the logits: [n, V] float32 of each, or [1, V] of its last token."""
        chunk = max(self.manifest.prefill_chunks)
        for start in range(0, len(ids), chunk):
            piece = ids[start : start + chunk]
            logits = self._model.run(piece, slot, self._slots[slot].length, last)
            self._slots[slot].extend(len(piece))
            yield logits
