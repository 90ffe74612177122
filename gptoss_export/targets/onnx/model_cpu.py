"""model.onnx on a CPU, with the KV caches of all slots. Needs onnxruntime and numpy; imports no torch.

    InPlaceModel  the default model. onnxruntime's attention writes keys and values behind those in the cache. A cache
                  is one buffer [B, Hkv, C + 1, D], bound as past and as present. A step writes one row for every slot:
                  for an idle one the row behind its last token. Row C exists for an idle slot that is full.
    GrowingModel  the portable model. Its operators return a longer copy of the cache. Each slot has its own
                  [1, Hkv, P, D]; for a step of several slots they are padded to one length.

A model keeps no lengths; the caller gives them. What lies behind a sequence's length is never read. So a call that
fails half-way changes no sequence, and a slot that held NaN serves the next sequence.

onnxruntime reads weights where their files are mapped. So the files are looked at before each call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ...artifact.manifest import Manifest
from ...runtime.mapped_files import MappedFiles
from .model_files import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_FROM, cache_names
from .options import Options
from .session import open_session, run_errors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Caches: TypeAlias = dict[str, np.ndarray]  # by the names of the model's inputs


class CpuModel(ABC):
    """A session and the KV caches of all slots.

    mapped: the files of weights that the session reads where they are mapped
    """

    def __init__(self, session: InferenceSession, manifest: Manifest, mapped: MappedFiles) -> None:
        self.session, self._mapped = session, mapped
        self._vocabulary = manifest.model.vocab_size
        # Inputs that are caches, to the outputs that go with them.
        self._present = {names.past: names.present for names in cache_names(manifest.model.num_hidden_layers)}

    @property
    @abstractmethod
    def kv_cache_bytes(self) -> int:
        """Memory of the caches."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], slot: int, start: int, last_only: bool) -> np.ndarray:
        """Append tokens behind the first `start` of a slot's sequence.

        Returns logits [n, V] float32 after each token, or [1, V] after the last (`last_only`). Raises RunError.
        """

    @abstractmethod
    def decode(self, tokens: Mapping[int, int], lengths: Sequence[int]) -> np.ndarray:
        """Append one token to the sequences of some slots (one or more); `lengths` are those of all slots before.

        Returns logits [B, V] float32. Rows of other slots mean nothing. Raises RunError.
        """


def load_model(manifest: Manifest, path: Path, options: Options) -> CpuModel:
    """The model at `path`.

    Raises ArtifactError where onnxruntime refuses it, where it is not the manifest's, or where a file cannot be read.
    """
    mapped = MappedFiles(path.parent / name for name in manifest.weight_files())
    session = open_session(path, manifest, ["CPUExecutionProvider"])
    return (GrowingModel if options.portable else InPlaceModel)(session, manifest, mapped)


class InPlaceModel(CpuModel):
    """The default model: the caches are written in place."""

    def __init__(self, session: InferenceSession, manifest: Manifest, mapped: MappedFiles) -> None:
        super().__init__(session, manifest, mapped)
        config, sizes = manifest.model, manifest.sizes
        shape = (sizes.max_batch, config.num_key_value_heads, sizes.max_context + 1, config.head_dim)
        self._caches: Caches = {name: np.zeros(shape, np.float32) for name in self._present}

    @property
    def kv_cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    @run_errors()
    def prefill(self, tokens: Sequence[int], slot: int, start: int, last_only: bool) -> np.ndarray:
        caches = {name: cache[slot : slot + 1] for name, cache in self._caches.items()}
        mask = np.ones((1, start + len(tokens)), np.int64)
        return self._call(np.array([tokens], np.int64), mask, caches, last_only)[0]

    @run_errors()
    def decode(self, tokens: Mapping[int, int], lengths: Sequence[int]) -> np.ndarray:
        ids = np.array([[tokens.get(slot, 0)] for slot in range(len(lengths))], np.int64)
        mask = (np.arange(max(lengths) + 1) <= np.array(lengths)[:, None]).astype(np.int64)
        return self._call(ids, mask, self._caches, last_only=False)[:, 0]

    def _call(self, ids: np.ndarray, mask: np.ndarray, caches: Caches, last_only: bool) -> np.ndarray:
        logits = np.empty((len(ids), 1 if last_only else ids.shape[1], self._vocabulary), np.float32)
        inputs = {INPUT_IDS: ids, ATTENTION_MASK: mask, LOGITS_FROM: _first_wanted(ids, last_only), **caches}
        outputs = {LOGITS: logits, **{self._present[name]: cache for name, cache in caches.items()}}
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._mapped.check()
        self.session.run_with_iobinding(binding)
        return logits


class GrowingModel(CpuModel):
    """The portable model: every call returns longer caches."""

    def __init__(self, session: InferenceSession, manifest: Manifest, mapped: MappedFiles) -> None:
        super().__init__(session, manifest, mapped)
        self._heads, self._head_dim = manifest.model.num_key_value_heads, manifest.model.head_dim
        empty = np.zeros((1, self._heads, 0, self._head_dim), np.float32)
        self._caches: list[Caches] = [dict.fromkeys(self._present, empty) for _ in range(manifest.sizes.max_batch)]

    @property
    def kv_cache_bytes(self) -> int:
        return sum(cache.nbytes for caches in self._caches for cache in caches.values())

    @run_errors()
    def prefill(self, tokens: Sequence[int], slot: int, start: int, last_only: bool) -> np.ndarray:
        past = {name: np.ascontiguousarray(cache[:, :, :start]) for name, cache in self._caches[slot].items()}
        mask = np.ones((1, start + len(tokens)), np.int64)
        logits, present = self._call(np.array([tokens], np.int64), mask, past, last_only)
        self._caches[slot] = present
        return logits[0]

    @run_errors()
    def decode(self, tokens: Mapping[int, int], lengths: Sequence[int]) -> np.ndarray:
        slots = sorted(tokens)
        longest = max(lengths[slot] for slot in slots)
        mask = np.zeros((len(slots), longest + 1), np.int64)
        mask[:, -1] = 1
        shape = (len(slots), self._heads, longest, self._head_dim)
        past = {name: np.zeros(shape, np.float32) for name in self._present}
        for row, slot in enumerate(slots):
            mask[row, : lengths[slot]] = 1
            for name in self._present:
                past[name][row, :, : lengths[slot]] = self._caches[slot][name][0, :, : lengths[slot]]
        found, present = self._call(np.array([[tokens[slot]] for slot in slots], np.int64), mask, past, False)
        logits = np.zeros((len(lengths), self._vocabulary), np.float32)
        logits[slots] = found[:, 0]
        for row, slot in enumerate(slots):
            kept = mask[row].astype(bool)
            self._caches[slot] = {name: cache[row : row + 1, :, kept] for name, cache in present.items()}
        return logits

    def _call(self, ids: np.ndarray, mask: np.ndarray, past: Caches, last_only: bool) -> tuple[np.ndarray, Caches]:
        inputs = {INPUT_IDS: ids, ATTENTION_MASK: mask, LOGITS_FROM: _first_wanted(ids, last_only), **past}
        self._mapped.check()
        logits, *present = self.session.run([LOGITS, *self._present.values()], inputs)
        return logits, dict(zip(self._present, present, strict=True))


def _first_wanted(ids: np.ndarray, last_only: bool) -> np.ndarray:
    """The first of tokens [B, S] whose logits are wanted: [1] int64."""
    return np.array([ids.shape[1] - 1 if last_only else 0], np.int64)
