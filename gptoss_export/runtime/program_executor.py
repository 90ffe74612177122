"""Runs compiled programs of static shape: every buffer is bound once, by the names in the programs' signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from ..artifact.manifest import Manifest
from ..artifact.programs import Decode, Prefill, Role, Unembed, kv_caches, programs_of
from ..errors import ArtifactError, raise_all
from ..model.config import SLIDING
from ..model.dtypes import torch_dtype
from .decode_step import StepRows
from .executor import ChunkOutput, PrefilledChunk, PrefilledPart, Prompt
from .packing import PackedChunk, pack
from .sampler_torch import StepOutput
from .torch_executor import TorchExecutor

# A loaded program: its inputs in the order of its signature to its outputs in that order.
LoadedProgram: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True)
class BoundProgram:
    """A program with its buffers. Calling it gives the outputs by name."""

    run: LoadedProgram
    inputs: Mapping[str, torch.Tensor]
    output_names: tuple[str, ...]

    def __call__(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.output_names, self.run(list(self.inputs.values())), strict=True))


class ProgramExecutor(TorchExecutor):
    """An executor over all programs of an artifact (`programs_of`)."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        device: torch.device,
        weights: Mapping[str, torch.Tensor],
        programs: Mapping[str, LoadedProgram],
    ) -> None:
        self.programs = bind_programs(manifest, folder, device, weights, programs)
        kinds = programs_of(manifest.sizes)
        decodes = {kind.width: self.programs[kind.name] for kind in kinds if isinstance(kind, Decode)}
        self._prefills = {kind.chunk: self.programs[kind.name] for kind in kinds if isinstance(kind, Prefill)}
        self._unembeds = {kind.rows: self.programs[kind.name] for kind in kinds if isinstance(kind, Unembed)}
        caches = kv_caches(manifest.model, manifest.sizes, manifest.dtype)
        self._caches = [next(iter(decodes.values())).inputs[item.name] for item in caches]
        sliding = [layer for layer, kind in enumerate(manifest.model.layer_types) if kind == SLIDING]
        self.ring_rows = manifest.sizes.cache.rows(manifest.model, sliding[0]) if sliding else 0
        rows = {width: _step_rows(program) for width, program in decodes.items()}
        super().__init__(manifest, rows, {width: partial(_outputs, program) for width, program in decodes.items()})

    @property
    def kv_cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches)

    @torch.inference_mode()
    def prefill_shared(self, prompts: Sequence[Prompt]) -> list[PrefilledPart]:
        places = pack(prompts, self._chunks())
        hidden = self._hidden(places)
        ends = [piece for piece in places.pieces if piece.ends]
        outputs: dict[int, StepOutput] = {}
        if ends:
            rows = torch.tensor([piece.last_row for piece in ends], device=self.device)
            output = self._unembed(hidden[rows])
            for row, piece in enumerate(ends):
                outputs[piece.slot] = StepOutput(*(values[row : row + 1] for values in output))
        return [PrefilledPart(piece.slot, len(piece.tokens), outputs.get(piece.slot)) for piece in places.pieces]

    def _prefill(self, slot: int, start: int, tokens: Sequence[int], every_token: bool) -> Iterator[PrefilledChunk]:
        done = 0
        while done < len(tokens):
            places = pack([Prompt(slot, start + done, tokens[done:])], self._chunks())
            count = len(places.pieces[0].tokens)
            hidden = self._hidden(places)[:count]
            done += count
            if not every_token:  # a copy: a view would keep the chunk's hidden states in memory
                hidden = (hidden[-1:] if done == len(tokens) else hidden[:0]).clone()
            yield PrefilledChunk(count, self._outputs(hidden))
            del hidden

    def _chunks(self) -> list[Prefill]:
        """The prefill programs that may run."""
        found = [kind for kind in programs_of(self.manifest.sizes) if isinstance(kind, Prefill)]
        return [max(found, key=lambda kind: kind.chunk)] if self.fixed_width else found

    def _hidden(self, chunk: PackedChunk) -> torch.Tensor:
        """The hidden states [C, H] float32 of a chunk's tokens."""
        program = self._prefills[chunk.program.chunk]
        for name, values in ("tokens", chunk.tokens()), ("positions", chunk.positions()), ("slots", chunk.slots()):
            program.inputs[name].copy_(torch.tensor(values, device="cpu"))
        return program()["hidden"]

    def _outputs(self, hidden: torch.Tensor) -> Iterator[ChunkOutput]:
        for rows in hidden.split(max(self._unembeds)) if len(hidden) else ():
            yield self._unembed(rows)

    def _unembed(self, hidden: torch.Tensor) -> StepOutput:
        """The outputs of a few hidden states, by the smallest program that takes them."""
        count = hidden.size(0)
        sizes = [rows for rows in self._unembeds if rows >= count]
        program = self._unembeds[max(sizes) if self.fixed_width else min(sizes)]
        program.inputs["hidden"][:count].copy_(hidden)
        return StepOutput(**{name: output[:count] for name, output in program().items()})


def _step_rows(program: BoundProgram) -> StepRows:
    rows = StepRows(*(program.inputs[name] for name in ("tokens", "positions", "slots")))
    rows.positions.fill_(-1)
    return rows


def _outputs(program: BoundProgram) -> StepOutput:
    return StepOutput(**program())


def bind_programs(
    manifest: Manifest,
    folder: Path,
    device: torch.device,
    weights: Mapping[str, torch.Tensor],
    programs: Mapping[str, LoadedProgram],
) -> dict[str, BoundProgram]:
    """Every program with its inputs: its own data buffers, the shared caches, the shared weights.

    Raises ArtifactError where a weight is missing or is not what the program was compiled for.
    """
    shared = dict(weights)
    bound: dict[str, BoundProgram] = {}
    problems = []
    for name, signature in manifest.programs.items():
        inputs: dict[str, torch.Tensor] = {}
        for item in signature.inputs:
            dtype = torch_dtype(item.dtype)
            if item.role == Role.WEIGHT and item.name not in shared:
                problems.append(f"{name}: weight {item.name} is not in the manifest")
                continue
            if item.role == Role.DATA:
                tensor = torch.zeros(item.shape, dtype=dtype, device=device)
            elif item.name in shared:
                tensor = shared[item.name]
            else:
                tensor = shared[item.name] = torch.zeros(item.shape, dtype=dtype, device=device)
            if tuple(tensor.shape) != item.shape or tensor.dtype != dtype or not tensor.is_contiguous():
                found = f"{tensor.dtype} {list(tensor.shape)}"
                problems.append(f"{name}: {item.name} is {found}, expected contiguous {dtype} {list(item.shape)}")
            inputs[item.name] = tensor
        bound[name] = BoundProgram(programs[name], inputs, tuple(item.name for item in signature.outputs))
    raise_all(ArtifactError, f"{folder}: the manifest contradicts itself; build the artifact again", problems)
    return bound
