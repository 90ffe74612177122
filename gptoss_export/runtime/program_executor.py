"""Runs compiled programs of static shape: binds every buffer once, and calls them (targets that compile programs)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from ..model.config import SLIDING
from ..errors import ArtifactError, raise_all
from ..artifact.manifest import Manifest
from ..progress import Steps
from ..targets import Callables, Target
from .cuda.memory import spare_process
from .sampler_torch import Scores
from .torch_executor import TorchRunner
from .weights import load_weights


class ProgramRunner(TorchRunner):
    """A Runner over the programs decode, prefill_<C> and unembed_<R> of an artifact."""

    @classmethod
    def _open(cls, manifest: Manifest, folder: Path, target: Target, steps: Steps, own_process: bool) -> ProgramRunner:
        if not manifest.programs:
            raise ArtifactError(f"{folder}: the manifest names no programs; build the artifact again")
        device = torch.device(manifest.device)
        if device.type == "cuda":
            if own_process:
                spare_process()
            device = torch.device("cuda", torch.cuda.current_device())
        with steps.step("load weights"):
            weights = load_weights(manifest, folder, device)
        with steps.step("load programs"):
            programs = target.load(manifest, folder, device)
        with steps.step("allocate and warm up"):
            return cls(manifest, folder, device, weights, programs)

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        device: torch.device,
        weights: dict[str, torch.Tensor],
        programs: Callables,
    ) -> None:
        self._programs = programs
        self._buffers = _bind(manifest, folder, device, weights)
        decode = self._buffers["decode"]
        tokens, positions, slots = decode[:3]
        slots.copy_(torch.arange(manifest.max_batch))
        super().__init__(manifest, folder, tokens, positions, partial(programs["decode"], decode))
        sliding = [i for i, kind in enumerate(manifest.model.layer_types) if kind == SLIDING]
        self._ring = self._cache_rows(sliding[0]) if sliding else 0

    def _cache_bytes(self) -> int:
        inputs = zip(self.manifest.programs["decode"].inputs, self._buffers["decode"], strict=True)
        return sum(tensor.nbytes for item, tensor in inputs if item.role == "cache")

    def _cache_rows(self, layer: int) -> int:
        inputs = self.manifest.programs["decode"].inputs
        return next(item.shape[2] - 1 for item in inputs if item.name == f"k_cache.{layer}")

    def _prefill(self, ids: Sequence[int], slot: int) -> Scores:
        for hidden in self._hidden(ids, slot):
            last = hidden[-1:].clone()  # a view would keep the chunk beside the next one's intermediates
            del hidden
        return self._unembed(last)

    @torch.inference_mode()
    def _scores_of(self, ids: Sequence[int], slot: int, claim: int) -> Iterator[Scores]:
        self._check_claim(claim)
        for hidden in self._hidden(ids, slot):
            for rows in hidden.split(self._score_rows):
                yield self._unembed(rows)
                self._check_claim(claim)

    def _hidden(self, tokens: Sequence[int], slot: int) -> Iterator[torch.Tensor]:
        """Prefill in chunks: the hidden states [n, H] float32 of each chunk's tokens."""
        done = 0
        while done < len(tokens):
            chunk = self._chunk(len(tokens) - done)
            piece = tokens[done : done + chunk]
            start, padding = self._slots[slot].length, chunk - len(piece)
            name = f"prefill_{chunk}"
            ids, positions, place = self._buffers[name][:3]
            ids.copy_(torch.tensor([*piece, *([0] * padding)]))
            positions.copy_(torch.tensor([*range(start, start + len(piece)), *([-1] * padding)]))
            place.fill_(slot)
            (hidden,) = self._programs[name](self._buffers[name])
            self._slots[slot].extend(len(piece))
            yield hidden[: len(piece)]
            del hidden
            done += len(piece)

    @property
    def _score_rows(self) -> int:
        return max(spec.inputs[0].shape[0] for name, spec in self.manifest.programs.items() if name.startswith("unembed_"))

    def _unembed(self, hidden: torch.Tensor) -> Scores:
        """Scores of up to `_score_rows` hidden states."""
        count = hidden.size(0)
        name = "unembed_1" if count == 1 else f"unembed_{self._score_rows}"
        self._buffers[name][0][:count].copy_(hidden)
        return Scores(*(output[:count] for output in self._programs[name](self._buffers[name])))


def _bind(
    manifest: Manifest, folder: Path, device: torch.device, weights: dict[str, torch.Tensor]
) -> dict[str, list[torch.Tensor]]:
    """The input list of every program: own data buffers, the shared caches, the shared weights."""
    shared = dict(weights)
    bound: dict[str, list[torch.Tensor]] = {}
    problems = []
    for program, spec in manifest.programs.items():
        bound[program] = []
        for item in spec.inputs:
            dtype = getattr(torch, item.dtype)
            if item.role == "weight" and item.name not in shared:
                problems.append(f"{program}: weight {item.name} is not in the manifest")
                continue
            if item.role == "data" or item.name not in shared:
                tensor = torch.zeros(item.shape, dtype=dtype, device=device)
                if item.role == "cache":
                    shared[item.name] = tensor
            else:
                tensor = shared[item.name]
            if tuple(tensor.shape) != item.shape or tensor.dtype != dtype or not tensor.is_contiguous():
                problems.append(
                    f"{program}: {item.name} is {tensor.dtype} {list(tensor.shape)}, expected contiguous "
                    f"{dtype} {list(item.shape)}"
                )
            bound[program].append(tensor)
    raise_all(ArtifactError, f"{folder}: manifest contradicts itself", problems)
    return bound
