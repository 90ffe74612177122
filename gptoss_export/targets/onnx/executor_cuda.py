"""Runs an ONNX artifact with onnxruntime on a GPU, with torch's tensors as its buffers.

The decode step is one CUDA graph, with the choice of the next token in it: torch captures what onnxruntime launches.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ...artifact.manifest import Manifest
from ...artifact.programs import SCORE_ROWS
from ...progress import Progress
from ...runtime.decode_step import Decoded, StepRows
from ...runtime.device_executor import DeviceExecutor, Placement
from ...runtime.executor import ChunkOutput, Outputs, Part, Prompt
from ...runtime.with_torch.choices import IN_TORCH, output_of
from ...runtime.with_torch.process_memory import reduce_process_memory
from ...runtime.with_torch.tensors import TorchTensors
from .model_cuda import CudaModel, load_model


def load_cuda(manifest: Manifest, folder: Path, progress: Progress, tune_process: bool) -> CudaExecutor:
    """Load an artifact onto torch's current GPU. Raises ArtifactError."""
    if tune_process:
        reduce_process_memory()
    device = torch.device("cuda", torch.cuda.current_device())
    with progress.stage("load the model"):
        model = load_model(manifest, folder, device)
    with progress.stage("allocate and warm up"):
        return CudaExecutor(manifest, model)


class CudaExecutor(DeviceExecutor):
    """Prefills and decode steps over a model; the step is captured, with the choice of the next token in it."""

    def __init__(self, manifest: Manifest, model: CudaModel) -> None:
        self.model = model
        width = manifest.sizes.max_batch
        tensors = TorchTensors(model.device)
        with tensors.working():
            rows = StepRows.empty(width, tensors)
            tokens, positions = torch.as_tensor(rows.tokens), torch.as_tensor(rows.positions)
            moving = self._moving = torch.zeros_like(positions)  # 1 where the row's sequence takes part, or 0

        def decode() -> Decoded:
            output = output_of(model.decode(tokens, positions))
            return Decoded(output, positions + moving, torch.where(moving > 0, positions, -1))

        super().__init__(manifest, tensors, {width: rows}, {width: decode}, IN_TORCH)

    @property
    def kv_cache_bytes(self) -> int:
        return self.model.kv_cache_bytes

    def _placement(self, slots: Sequence[int], lengths: Sequence[int]) -> Placement:
        """Every slot has its row. A step writes one position of every slot's cache: where its sequence takes no part,
        the one behind the last token."""
        every = range(self.manifest.sizes.max_batch)
        return Placement(len(every), list(every), list(lengths), [slot in slots for slot in every])

    def _write_rows(self, rows: StepRows, placed: Placement) -> None:
        super()._write_rows(rows, placed)
        self.tensors.write(self._moving, array("q", placed.moving))

    def chunk_of(self, prompt: Prompt) -> Part:
        return prompt.first(self._chunk_for(len(prompt.tokens)))

    def _prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        known, chunk = self.model.known_shapes, self._chunk_for(len(part.tokens))
        logits = self.model.prefill(part.tokens, part.slot, part.start, chunk, last_only=outputs != Outputs.EVERY)
        if self.model.known_shapes != known:
            self.steps[self.manifest.sizes.max_batch].forget()
        return _outputs(logits[:0] if outputs == Outputs.NONE else logits)


def _outputs(logits: torch.Tensor) -> Iterator[ChunkOutput]:
    """Logits [n, V] as outputs of a few rows each, which bound the memory of their float32 copies."""
    for rows in logits.split(SCORE_ROWS) if len(logits) else ():
        yield output_of(rows)
