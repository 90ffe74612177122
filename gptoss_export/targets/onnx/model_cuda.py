"""model.onnx on onnxruntime's CUDA provider, with torch's tensors as buffers.

A cache is one buffer [B, Hkv, C + 1, D] that is bound as past and as present, and written in place. All calls use one
stream, so that torch can capture a decode step. Its arguments lie at fixed addresses, and the mask says how long each
sequence is.

QMoE, the experts' op, times its kernels in every layer when a call has a number of rows that it has not seen. So
prompts are padded to the artifact's chunks, and each chunk runs once when the model is loaded. The padding lies behind
the sequence, where no token sees it. At the end of the context there is no room for it: such a call has a number of
rows of its own and is slow.

onnxruntime may use the scratch memory of a captured step for other calls. That is safe between two steps, since a call
and a step wait for each other. But a call of a new shape may keep something there. `known_shapes` counts the shapes,
and the step is captured again after each new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...artifact.manifest import Manifest
from ...errors import ArtifactError, RunError
from ...model.dtypes import torch_dtype
from ...runtime.with_torch.capture import own_stream
from .model_files import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_FROM, LOGITS_TO, MODEL, PROBE, cache_names
from .session import open_closed_model, open_session, run_errors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PROVIDER = "CUDAExecutionProvider"
_TENSOR_TYPES = {torch.bfloat16: 16, torch.int64: 7}  # numbers of ONNX's TensorProto.DataType
_PROBE_BOUND = 0.05  # relative error: ten times that of rounding, a small part of that of another layout of the weights


@dataclass(frozen=True)
class _Bound:
    """The arguments of a call by their addresses, and the tensor on the host that the binding does not keep alive."""

    binding: Any
    wanted: torch.Tensor


def load_model(manifest: Manifest, folder: Path, device: torch.device) -> CudaModel:
    """The model in `folder`. Raises ArtifactError where onnxruntime cannot run it or where it is not the manifest's."""
    stream = own_stream(device)
    settings = {
        "device_id": str(device.index),
        "user_compute_stream": str(stream.cuda_stream),
        "arena_extend_strategy": "kSameAsRequested",
    }
    providers = [(_PROVIDER, settings)]
    check_probe(folder / PROBE, providers)
    entries = {"session.use_device_allocator_for_initializers": "1"}  # an arena would round their sizes up
    session = open_session(folder / MODEL, manifest, providers, entries)
    try:
        return CudaModel(session, manifest, device, stream)
    except RunError as error:
        raise ArtifactError(f"{folder / MODEL}: the first prompt failed: {error}") from error


def check_probe(path: Path, providers: Sequence[Any]) -> None:
    """Run the probe. Raises ArtifactError where this onnxruntime cannot run the experts or computes them wrongly."""
    session = open_closed_model(path, providers)
    if _PROVIDER not in session.get_providers():
        raise ArtifactError(
            f"{path.parent}: onnxruntime could not start its CUDA provider; it needs CUDA 13 and cuDNN 9, which come "
            "with a torch built for CUDA 13"
        )
    try:
        with run_errors():
            (errors,) = session.run(None, {})
    except RunError as error:
        raise ArtifactError(
            f"{path}: {error}; QMoE with MXFP4 does not run here: install the onnxruntime-gpu that the manifest names"
        ) from error
    if not (errors < _PROBE_BOUND).all():
        raise ArtifactError(
            f"{path}: QMoE of this onnxruntime computes other values than these weights give: relative error "
            f"{errors.max():.2g}, expected below {_PROBE_BOUND}; install the onnxruntime-gpu that the manifest names, "
            "or build again"
        )


class CudaModel:
    """A session and the KV caches of all slots, on the device. Keeps no lengths."""

    def __init__(
        self, session: InferenceSession, manifest: Manifest, device: torch.device, stream: torch.cuda.Stream
    ) -> None:
        import onnxruntime

        config, sizes = manifest.model, manifest.sizes
        rows = sizes.max_context + 1  # the last one is for an idle slot that is full
        self.session, self.device = session, device
        self._stream, self._vocabulary, self._dtype = stream, config.vocab_size, torch_dtype(manifest.dtype)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        # Inputs that are caches, to the outputs that go with them.
        self._present = {names.past: names.present for names in cache_names(config.num_hidden_layers)}
        shape = (sizes.max_batch, config.num_key_value_heads, rows, config.head_dim)
        self._caches = {name: torch.zeros(shape, dtype=self._dtype, device=device) for name in self._present}
        self._row_numbers = torch.arange(rows, device=device)
        self._mask = torch.zeros(sizes.max_batch, rows, dtype=torch.int64, device=device)
        self._logits = torch.zeros(sizes.max_batch, 1, config.vocab_size, dtype=self._dtype, device=device)
        self._decode_arguments: _Bound | None = None
        self._shapes: set[tuple[int, int]] = set()  # of prefill calls: rows, and rows of logits
        for chunk in sizes.prefill_chunks:
            self.prefill([0], slot=0, start=0, rows=chunk, last_only=True)

    @property
    def kv_cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    @property
    def known_shapes(self) -> int:
        """How many different shapes the prefill calls had so far."""
        return len(self._shapes)

    @run_errors()
    def prefill(self, tokens: Sequence[int], slot: int, start: int, rows: int, last_only: bool) -> torch.Tensor:
        """Append tokens behind the first `start` of a slot's sequence, padded to `rows` where the cache has room.

        Returns logits [n, V] after each token, or [1, V] after the last (`last_only`). Raises RunError.
        """
        count = len(tokens)
        rows = max(count, min(rows, self._row_numbers.numel() - start))
        ids = torch.tensor([[*tokens, *[0] * (rows - count)]], device=self.device)
        mask = torch.ones(1, start + rows, dtype=torch.int64, device=self.device)
        wanted = range(count - 1 if last_only else 0, count)
        logits = torch.empty(1, len(wanted), self._vocabulary, dtype=self._dtype, device=self.device)
        caches = {name: cache[slot : slot + 1] for name, cache in self._caches.items()}
        self._shapes.add((rows, len(wanted)))
        self._call(self._bind(ids, mask, caches, logits, wanted))
        return logits[0]

    @run_errors()
    def decode(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Append a token to the sequence of every slot, at `positions` [B]; -1: at the row behind the context.

        Returns logits [B, V], which the next call overwrites. Each call must give the same tensor `tokens` [B]: its
        address is bound. Raises RunError.
        """
        if self._decode_arguments is None:
            self._decode_arguments = self._bind(tokens[:, None], self._mask, self._caches, self._logits, range(1))
        last = torch.where(positions < 0, self._row_numbers[-1], positions)
        torch.le(self._row_numbers, last[:, None], out=self._mask)
        self._call(self._decode_arguments)
        return self._logits[:, 0]

    def _bind(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        caches: Mapping[str, torch.Tensor],
        logits: torch.Tensor,
        wanted: range,
    ) -> _Bound:
        """Bind the arguments of a call; `wanted`: the tokens whose logits are computed."""
        binding, ends = self.session.io_binding(), torch.tensor([wanted.start, wanted.stop], device="cpu")
        inputs = {LOGITS_FROM: ends[:1], LOGITS_TO: ends[1:], INPUT_IDS: ids, ATTENTION_MASK: mask, **caches}
        for name, tensor in inputs.items():
            binding.bind_input(name, *_address(tensor))
        for name, tensor in {LOGITS: logits, **{self._present[name]: cache for name, cache in caches.items()}}.items():
            binding.bind_output(name, *_address(tensor))
        return _Bound(binding, ends)

    def _call(self, bound: _Bound) -> None:
        with self._on_stream():
            self.session.run_with_iobinding(bound.binding, self._run_options)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """The call starts after the work on the current stream, and later work on that stream starts after the call."""
        current = torch.cuda.current_stream(self.device)
        if current.cuda_stream == self._stream.cuda_stream:  # a step that is being captured
            yield
            return
        self._stream.wait_stream(current)
        try:
            yield
        finally:  # a call that failed may have launched some of its work
            current.wait_stream(self._stream)


def _address(tensor: torch.Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
    """Where onnxruntime finds a tensor: device, its number, type, shape and address."""
    device = tensor.device
    return device.type, device.index or 0, _TENSOR_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
