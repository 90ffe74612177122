"""Runs model.onnx by onnxruntime, over the caches of all slots. Needs numpy, no torch.

Both kinds of model take a call `run(ids, slot)` for one slot's next tokens and `step(ids)` for one token a slot.

  InPlace   GroupQueryAttention writes keys and values behind those that are there: a cache is one buffer
            [B, Hkv, C + 1, D] that is bound as past and as present. Idle slots write to the row behind their last.
  Growing   standard operators give a longer copy of the cache back: rows [B, Hkv, P, D], one column a call, and a
            mask [B, P] that says which columns are tokens of which slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError
from ...manifest import Manifest
from . import SESSION_OPTIONS

Caches = dict[str, np.ndarray]


def load_model(manifest: Manifest, path: Path, in_place: bool) -> Any:
    """The model at `path`, ready. Raises ArtifactError where onnxruntime refuses it or it is of another shape."""
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        for name, value in SESSION_OPTIONS.items():
            options.add_session_config_entry(name, value)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of no common kind but this
        raise ArtifactError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}") from None
    config = manifest.model
    names = [f"past_key_values.{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
    expected = {"input_ids": [], "attention_mask": []} | dict.fromkeys(names, [config.num_key_value_heads, config.head_dim])
    found = {item.name: item.shape[1::2] if item.name in names else [] for item in session.get_inputs()}
    if found != expected:
        raise ArtifactError(f"{path}: not the model of the manifest: its inputs are {', '.join(found)}; build it again")
    return (InPlace if in_place else Growing)(session, manifest, names)


def _present(name: str) -> str:
    return name.replace("past_key_values", "present")


class InPlace:
    """Caches that are written where they lie."""

    def __init__(self, session: Any, manifest: Manifest, names: Sequence[str]) -> None:
        config = manifest.model
        self._session, self._vocabulary = session, config.vocab_size
        shape = (manifest.max_batch, config.num_key_value_heads, manifest.max_context + 1, config.head_dim)
        self._caches: Caches = {name: np.zeros(shape, np.float32) for name in names}
        self._lengths = np.zeros(manifest.max_batch, np.int64)

    def run(self, ids: Sequence[int], slot: int) -> np.ndarray:
        """Append tokens to a slot's sequence; logits [n, V] float32 after each of them."""
        start = int(self._lengths[slot])
        mask = np.ones((1, start + len(ids)), np.int64)
        caches = {name: cache[slot : slot + 1] for name, cache in self._caches.items()}
        logits = self._call(np.array([ids], np.int64), mask, caches)
        self._lengths[slot] += len(ids)
        return logits[0]

    def step(self, ids: dict[int, int]) -> np.ndarray:
        """Append a token to each of some slots' sequences; logits [B, V] float32, of the others meaningless."""
        tokens = np.array([[ids.get(slot, 0)] for slot in range(len(self._lengths))], np.int64)
        mask = (np.arange(self._lengths.max() + 1) <= self._lengths[:, None]).astype(np.int64)
        logits = self._call(tokens, mask, self._caches)
        self._lengths[list(ids)] += 1
        return logits[:, 0]

    def cut(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot."""
        self._lengths[slot] = length

    def _call(self, ids: np.ndarray, mask: np.ndarray, caches: Caches) -> np.ndarray:
        logits = np.empty((*ids.shape, self._vocabulary), np.float32)
        binding = self._session.io_binding()
        bound = {"input_ids": ids, "attention_mask": mask} | caches
        for name, array in bound.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in {"logits": logits, **{_present(name): cache for name, cache in caches.items()}}.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits


class Growing:
    """Caches that every call gives back longer."""

    def __init__(self, session: Any, manifest: Manifest, names: Sequence[str]) -> None:
        config = manifest.model
        self._session, self._names = session, names
        self._empty = np.zeros((manifest.max_batch, config.num_key_value_heads, 0, config.head_dim), np.float32)
        self._mask = np.zeros((manifest.max_batch, 0), np.int64)
        self._caches: Caches = dict.fromkeys(names, self._empty)

    def run(self, ids: Sequence[int], slot: int) -> np.ndarray:
        """Append tokens to a slot's sequence; logits [n, V] float32 after each of them."""
        tokens = np.zeros((len(self._mask), len(ids)), np.int64)
        tokens[slot] = ids
        new = np.zeros_like(tokens)
        new[slot] = 1
        return self._call(tokens, new)[slot]

    def step(self, ids: dict[int, int]) -> np.ndarray:
        """Append a token to each of some slots' sequences; logits [B, V] float32, of the others meaningless."""
        slots = range(len(self._mask))
        new = np.array([[int(slot in ids)] for slot in slots], np.int64)
        return self._call(np.array([[ids.get(slot, 0)] for slot in slots], np.int64), new)[:, 0]

    def cut(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot; columns that no slot needs go."""
        row = self._mask[slot]
        row[np.cumsum(row) > length] = 0
        used = self._mask.any(axis=0)
        self._mask = self._mask[:, used]
        self._caches = {name: np.ascontiguousarray(cache[:, :, used]) for name, cache in self._caches.items()}

    def _call(self, ids: np.ndarray, new: np.ndarray) -> np.ndarray:
        self._mask = np.concatenate([self._mask, new], axis=1)
        given = {"input_ids": ids, "attention_mask": self._mask} | self._caches
        logits, *presents = self._session.run(["logits", *map(_present, self._names)], given)
        self._caches = dict(zip(self._names, presents, strict=True))
        return logits
