"""Runs model.onnx by onnxruntime on a CPU, over the caches of all slots. Needs numpy, no torch.

Both kinds of model are called with what the caller knows of lengths, and keep none themselves: what lies behind a
sequence's length counts for nothing, so that a call that was broken off leaves nothing wrong.

  InPlace   GroupQueryAttention writes keys and values behind those that are there: a cache is one buffer
            [B, Hkv, C + 1, D] that is bound as past and as present. Idle slots write to the row behind their last.
  Growing   standard operators give a longer copy of the cache back: each slot has its own [1, Hkv, P, D]; for a step of
            several they are padded to one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artifact.manifest import Manifest
from .compile import LOGITS_FROM, PORTABLE
from .session import cache_names, failures, open_session, present

Caches = dict[str, np.ndarray]


def load_model(manifest: Manifest, path: Path) -> Any:
    """The model at `path`, ready. Raises ArtifactError where onnxruntime refuses it or it is not the manifest's."""
    session = open_session(manifest, path, ["CPUExecutionProvider"])
    return (Growing if manifest.arch == PORTABLE else InPlace)(session, manifest)


class InPlace:
    """Caches that are written where they lie."""

    def __init__(self, session: Any, manifest: Manifest) -> None:
        config = manifest.model
        self._session, self._vocabulary = session, config.vocab_size
        shape = (manifest.max_batch, config.num_key_value_heads, manifest.max_context + 1, config.head_dim)
        self._caches: Caches = {name: np.zeros(shape, np.float32) for name in cache_names(manifest)}

    @property
    def cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    def run(self, ids: Sequence[int], slot: int, start: int, last: bool) -> np.ndarray:
        """Tokens of a slot's sequence behind its first `start`; logits [n, V] float32 after each, or (`last`) the last of them."""
        caches = {name: cache[slot : slot + 1] for name, cache in self._caches.items()}
        return self._call(np.array([ids], np.int64), np.ones((1, start + len(ids)), np.int64), caches, last)[0]

    def step(self, ids: dict[int, int], lengths: Sequence[int]) -> np.ndarray:
        """A token behind each of some slots' sequences; logits [B, V] float32, of the others meaningless."""
        tokens = np.array([[ids.get(slot, 0)] for slot in range(len(lengths))], np.int64)
        mask = (np.arange(max(lengths) + 1) <= np.array(lengths)[:, None]).astype(np.int64)
        return self._call(tokens, mask, self._caches, last=False)[:, 0]

    def _call(self, ids: np.ndarray, mask: np.ndarray, caches: Caches, last: bool) -> np.ndarray:
        logits = np.empty((len(ids), 1 if last else ids.shape[1], self._vocabulary), np.float32)
        binding = self._session.io_binding()
        bound = {"input_ids": ids, "attention_mask": mask, LOGITS_FROM: _first(ids, last)} | caches
        for name, array in bound.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in {"logits": logits, **{present(name): cache for name, cache in caches.items()}}.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        with failures():
            self._session.run_with_iobinding(binding)
        return logits


class Growing:
    """Caches that every call gives back longer."""

    def __init__(self, session: Any, manifest: Manifest) -> None:
        config = manifest.model
        self._session, self._names, self._vocabulary = session, cache_names(manifest), config.vocab_size
        empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
        self._caches: list[Caches] = [dict.fromkeys(self._names, empty) for _ in range(manifest.max_batch)]

    @property
    def cache_bytes(self) -> int:
        return sum(cache.nbytes for caches in self._caches for cache in caches.values())

    def run(self, ids: Sequence[int], slot: int, start: int, last: bool) -> np.ndarray:
        """Tokens of a slot's sequence behind its first `start`; logits [n, V] float32 after each, or (`last`) the last of them."""
        past = {name: np.ascontiguousarray(cache[:, :, :start]) for name, cache in self._caches[slot].items()}
        logits, presents = self._call(np.array([ids], np.int64), np.ones((1, start + len(ids)), np.int64), past, last)
        self._caches[slot] = presents
        return logits[0]

    def step(self, ids: dict[int, int], lengths: Sequence[int]) -> np.ndarray:
        """A token behind each of some slots' sequences; logits [B, V] float32, of the others meaningless."""
        slots = sorted(ids)
        longest = max(lengths[slot] for slot in slots)
        mask = np.zeros((len(slots), longest + 1), np.int64)
        mask[:, -1] = 1
        shape = (len(slots), *self._caches[0][self._names[0]].shape[1:2], longest, self._caches[0][self._names[0]].shape[3])
        past = {name: np.zeros(shape, np.float32) for name in self._names}
        for row, slot in enumerate(slots):
            mask[row, : lengths[slot]] = 1
            for name in self._names:
                past[name][row, :, : lengths[slot]] = self._caches[slot][name][0, :, : lengths[slot]]
        found, presents = self._call(np.array([[ids[slot]] for slot in slots], np.int64), mask, past, False)
        logits = np.zeros((len(lengths), self._vocabulary), np.float32)
        logits[slots] = found[:, 0]
        for row, slot in enumerate(slots):
            kept = mask[row].astype(bool)
            self._caches[slot] = {name: present[row : row + 1, :, kept] for name, present in presents.items()}
        return logits

    def _call(self, ids: np.ndarray, mask: np.ndarray, past: Caches, last: bool) -> tuple[np.ndarray, Caches]:
        given = {"input_ids": ids, "attention_mask": mask, LOGITS_FROM: _first(ids, last)} | past
        with failures():
            logits, *presents = self._session.run(["logits", *map(present, self._names)], given)
        return logits, dict(zip(self._names, presents, strict=True))


def _first(ids: np.ndarray, last: bool) -> np.ndarray:
    """The first of tokens [B, S] whose logits are wanted, of all or (`last`) of the last."""
    return np.array([ids.shape[1] - 1 if last else 0], np.int64)
