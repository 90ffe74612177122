"""Runs one model whose runtime has calls of its own, on a GPU, with torch's tensors as its buffers.

The decode step, the choice of the next token included, is one CUDA graph as with compiled programs: torch records what the
runtime launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...artifact.manifest import Manifest
from ...progress import Steps
from ...targets import Target
from ...runtime.cuda.memory import spare_process
from ...runtime.sampler_torch import Scores
from ...runtime.torch_executor import TorchRunner


class DeviceSessionRunner(TorchRunner):
    """A Runner over a model with `run`, `decode` and `calls` (targets/onnx/device.py)."""

    @classmethod
    def _open(
        cls, manifest: Manifest, folder: Path, target: Target, steps: Steps, own_process: bool
    ) -> DeviceSessionRunner:
        if own_process:
            spare_process()
        device = torch.device("cuda", torch.cuda.current_device())
        with steps.step("load the model"):
            model = target.load(manifest, folder, device)
        with steps.step("allocate and warm up"):
            return cls(manifest, folder, device, model)

    def __init__(self, manifest: Manifest, folder: Path, device: torch.device, model: Any) -> None:
        self._model = model
        ids, positions = torch.zeros(2, manifest.max_batch, dtype=torch.int64, device=device)
        super().__init__(manifest, folder, ids, positions, lambda: Scores.of(model.decode(ids, positions)))

    def _cache_bytes(self) -> int:
        return self._model.cache_bytes

    def _idle(self, slot: int) -> int:
        """A step writes to the cache of every slot: to the row behind the last of one that is idle."""
        return self._slots[slot].length

    def _prefill(self, ids: Sequence[int], slot: int) -> Scores:
        for logits in self._pieces(ids, slot, last=True):
            pass
        return Scores.of(logits)

    @torch.inference_mode()
    def _scores_of(self, ids: Sequence[int], slot: int, claim: int) -> Iterator[Scores]:
        self._check_claim(claim)
        for logits in self._pieces(ids, slot, last=False):
            for rows in logits.split(_ROWS):
                yield Scores.of(rows)
                self._check_claim(claim)

    def _pieces(self, ids: Sequence[int], slot: int, last: bool) -> Iterator[torch.Tensor]:
        """Prefill in chunks: logits [n, V] of each, or [1, V] of its last token."""
        while ids:
            chunk = self._chunk(len(ids))
            piece, ids = ids[:chunk], ids[chunk:]
            known = self._model.calls
            logits = self._model.run(piece, slot, self._slots[slot].length, chunk, last)
            if self._model.calls != known:
                self._step.forget()
            self._slots[slot].extend(len(piece))
            yield logits
            del logits


_ROWS = 64  # logits that are made float32 at a time
