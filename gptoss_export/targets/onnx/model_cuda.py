"""Runs model.onnx by onnxruntime's CUDA provider, with torch's tensors as buffers.

A cache is one buffer [B, Hkv, C + 1, D] that is bound as past and as present, and written in place. Whatever runs, runs on one
stream, so that torch can record a decode step: its arguments lie at fixed addresses, the mask says how long each sequence is.

QMoE chooses its kernels by timing them in every layer, when it first meets a number of rows. So prompts are padded to the
artifact's chunks, and all of them run once at the start. The padding lies behind the sequence, where nothing sees it; at the
end of the context, where it does not fit, a call has a number of rows of its own, and takes that long.

What a recorded step uses as scratch, onnxruntime takes for free afterwards. Later calls may use it between two steps, never
during one, since each waits for the other. But a call of a new kind may keep something there: `calls` counts the kinds, and
the step is recorded anew after each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...runtime.cuda.driver import own_stream
from ...errors import ArtifactError, RunError
from ...artifact.manifest import Manifest
from .compile import LOGITS_FROM, LOGITS_TO, MODEL, PROBE
from .session import cache_names, failures, open_session, present, start_session

_PROVIDER = "CUDAExecutionProvider"
_TYPES = {torch.bfloat16: 16, torch.int64: 7}  # numbers of ONNX's TensorProto
_WRONG = 0.05  # relative error; rounding is 0.004, another layout of the weights above 1


def load_model(manifest: Manifest, folder: Path, device: torch.device) -> OnDevice:
    """The artifact's model, ready. Raises ArtifactError where onnxruntime cannot run it here or it is not the manifest's."""
    stream = own_stream(device)
    options = {
        "device_id": str(device.index), "user_compute_stream": str(stream.cuda_stream),
        "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    _check_kernel(folder / PROBE, [(_PROVIDER, options)])
    more = {"session.use_device_allocator_for_initializers": "1"}  # an arena would round them up
    session = open_session(manifest, folder / MODEL, [(_PROVIDER, options)], more)
    try:
        return OnDevice(session, manifest, device, stream)
    except RunError as error:
        raise ArtifactError(f"{folder / MODEL}: a first prompt failed: {error}") from error


def _check_kernel(path: Path, providers: Sequence[Any]) -> None:
    """Run the probe: this onnxruntime has the experts' kernel, and reads the weights as they are packed."""
    session = start_session(path, providers)
    if _PROVIDER not in session.get_providers():
        raise ArtifactError(
            f"{path.parent}: onnxruntime could not start its CUDA provider; it needs CUDA 13 and cuDNN 9, which a torch "
            "built for CUDA 13 brings"
        )
    try:
        with failures():
            (errors,) = session.run(None, {})
    except RunError as error:
        raise ArtifactError(f"{path}: {error}; QMoE with MXFP4 does not run here: install the onnxruntime-gpu that the "
                            "manifest names") from error  # fmt: skip
    if not (errors < _WRONG).all():
        raise ArtifactError(
            f"{path}: QMoE of this onnxruntime gives other values than those that belong to these weights: relative error "
            f"{errors.max():.2g}, expected below {_WRONG}; install the onnxruntime-gpu that the manifest names, or build again"
        )


class OnDevice:
    """Caches that are written where they lie, on the device."""

    def __init__(self, session: Any, manifest: Manifest, device: torch.device, stream: torch.cuda.Stream) -> None:
        import onnxruntime

        config, batch, rows = manifest.model, manifest.max_batch, manifest.max_context + 1
        self._session, self._device, self._stream = session, device, stream
        self._vocabulary, self._dtype = config.vocab_size, getattr(torch, manifest.dtype)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        shape = (batch, config.num_key_value_heads, rows, config.head_dim)
        self._caches = {name: torch.zeros(shape, dtype=self._dtype, device=device) for name in cache_names(manifest)}
        self._places = torch.arange(rows, device=device)
        self._mask = torch.zeros(batch, rows, dtype=torch.int64, device=device)
        self._logits = torch.zeros(batch, 1, config.vocab_size, dtype=self._dtype, device=device)
        self._step: Any = None
        self._kinds: set[tuple[int, int]] = set()  # rows of a call, and of its logits
        for chunk in manifest.prefill_chunks:
            self.run([0], slot=0, start=0, rows=chunk, last=True)

    @property
    def cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    @property
    def calls(self) -> int:
        """How many kinds of calls there have been."""
        return len(self._kinds)

    def run(self, ids: Sequence[int], slot: int, start: int, rows: int, last: bool) -> torch.Tensor:
        """Tokens of a slot's sequence behind its first `start`; logits [n, V] after each of them, or (`last`) the last.

        They are padded to `rows`, where the cache has as many.
        """
        rows = max(len(ids), min(rows, self._places.numel() - start))
        tokens = torch.tensor([[*ids, *[0] * (rows - len(ids))]], device=self._device)
        mask = torch.ones(1, start + rows, dtype=torch.int64, device=self._device)
        wanted = range(len(ids) - 1 if last else 0, len(ids))
        logits = torch.empty(1, len(wanted), self._vocabulary, dtype=self._dtype, device=self._device)
        caches = {name: cache[slot : slot + 1] for name, cache in self._caches.items()}
        self._kinds.add((rows, len(wanted)))
        self._call(self._bound(tokens, mask, caches, logits, wanted))
        return logits[0]

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """A token at `positions` [B] of each slot's sequence, -1: at the row behind the context; logits [B, V].

        Always to be called with the same tokens [B]: their place is bound. The logits are overwritten by the next call.
        """
        if self._step is None:
            self._step = self._bound(tokens[:, None], self._mask, self._caches, self._logits, range(1))
        last = torch.where(positions < 0, self._places[-1], positions)
        torch.le(self._places, last[:, None], out=self._mask)
        self._call(self._step)
        return self._logits[:, 0]

    def _bound(
        self, ids: torch.Tensor, mask: torch.Tensor, caches: Mapping[str, torch.Tensor], logits: torch.Tensor, wanted: range
    ) -> tuple[Any, torch.Tensor]:
        """Arguments by their addresses; `wanted` are the tokens whose logits are."""
        binding, ends = self._session.io_binding(), torch.tensor([wanted.start, wanted.stop])
        given = {LOGITS_FROM: ends[:1], LOGITS_TO: ends[1:], "input_ids": ids, "attention_mask": mask, **caches}
        for name, tensor in given.items():
            binding.bind_input(name, *_place(tensor))
        for name, tensor in {"logits": logits, **{present(name): cache for name, cache in caches.items()}}.items():
            binding.bind_output(name, *_place(tensor))
        return binding, ends  # which the binding does not keep

    def _call(self, bound: tuple[Any, torch.Tensor]) -> None:
        with failures(), self._on_stream():
            self._session.run_with_iobinding(bound[0], self._options)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """What is on the current stream is done before the call, and the call before what comes after."""
        current = torch.cuda.current_stream(self._device)
        if current.cuda_stream == self._stream.cuda_stream:  # a step that is recorded
            yield
            return
        self._stream.wait_stream(current)
        try:
            yield
        finally:  # a call that failed may have launched some of its work
            current.wait_stream(self._stream)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where onnxruntime finds a tensor: device, its number, type, shape and address."""
    device = tensor.device
    return device.type, device.index or 0, _TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
