"""Runs compiled programs of static shape: every buffer is bound once, by the names in the programs' signatures."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from ..artifact.calls import Role
from ..artifact.manifest import Manifest
from ..artifact.programs import CHOICES, AllLogits, Decode, Prefill, Unembed, model_programs
from ..errors import ArtifactError, raise_all
from ..model.parameters import PLACES
from ..model.sampling_state import Choice
from .adapter_memory import AdapterMemory
from .captured_program import CapturedProgram
from .choosing import ChoiceProgram, StepOutput
from .decode_step import Decoded, StepRows
from .device_executor import DeviceExecutor
from .executor import ChunkOutput, Outputs, Part, Prompt
from .packing import PackedChunk, lay_out, pack
from .page_memory import PageMemory
from .tensors import LoadedProgram, Tensor, Tensors


@dataclass(frozen=True)
class BoundProgram:
    """A program with its buffers. Calling it gives the outputs by name."""

    run: LoadedProgram
    inputs: Mapping[str, Tensor]
    output_names: tuple[str, ...]

    def __call__(self) -> dict[str, Tensor]:
        return dict(zip(self.output_names, self.run(list(self.inputs.values())), strict=True))


class ProgramExecutor(DeviceExecutor):
    """An executor over the programs of an artifact: those that compute the model, and the choices that its target
    compiles.

    choices   what computes the choices that the target does not compile
    adapters  None: the artifact has no adapter slots
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        tensors: Tensors,
        weights: Mapping[str, Tensor],
        programs: Mapping[str, LoadedProgram],
        memory: PageMemory,
        choices: Mapping[Choice, ChoiceProgram],
        adapters: AdapterMemory | None = None,
    ) -> None:
        self.paged_memory, self.adapter_memory = memory, adapters
        with tensors.working():
            shared = {**weights, **memory.bound, **({} if adapters is None else adapters.bound)}
            self.programs = bind_programs(manifest, folder, tensors, shared, programs)
            kinds = model_programs(manifest.sizes)
            decodes = {kind.width: self.programs[kind.name] for kind in kinds if isinstance(kind, Decode)}
            rows = {width: _step_rows(program) for width, program in decodes.items()}
        pool = cache(tensors.new_pool)
        self._prefills = {
            kind.chunk: CapturedProgram(self.programs[kind.name], tensors, pool)
            for kind in kinds
            if isinstance(kind, Prefill)
        }
        self._unembeds = {kind.rows: self.programs[kind.name] for kind in kinds if isinstance(kind, Unembed)}
        self._memory = memory
        compiled = {kind.choice: programs[kind.name] for kind in CHOICES if kind.name in programs}
        decode = {width: partial(_decode, program) for width, program in decodes.items()}
        gather = None
        if (all_logits := programs.get(AllLogits().name)) is not None:
            gather = partial(_gather, all_logits, weights[PLACES])
        super().__init__(manifest, tensors, rows, decode, {**choices, **compiled}, gather)

    def capture_while(self, waiting: Callable[[], bool]) -> None:
        """Capture prefill programs as long as the caller has to wait for something else. The others are captured when
        they are first called."""
        with self.tensors.working():
            for chunk in sorted(self._prefills, reverse=True):  # the memory of the largest serves the others
                if waiting():
                    self._prefills[chunk].capture()

    @property
    def kv_cache_bytes(self) -> int:
        return self._memory.nbytes

    def chunk_of(self, prompt: Prompt) -> Part:
        return pack([prompt], self._chunks()).pieces[0].part

    def shared_chunk_of(self, prompts: Sequence[Prompt]) -> list[Part]:
        return [piece.part for piece in pack(prompts, self._chunks()).pieces]

    def prefill_shared(self, parts: Sequence[Part]) -> list[ChunkOutput | None]:
        with self.tensors.working():
            chunk = lay_out(parts, self._chunks())
            hidden = self._hidden(chunk)
            rows = [piece.last_row for part, piece in zip(parts, chunk.pieces, strict=True) if part.ends]
            if not rows:
                return [None] * len(parts)
            output = self._unembed(self.tensors.rows(hidden, rows))
        each = (StepOutput(*(values[row : row + 1] for values in output)) for row in range(len(rows)))
        return [next(each) if part.ends else None for part in parts]

    def _prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        hidden = self._hidden(lay_out([part], self._chunks()))[: len(part.tokens)]
        if outputs != Outputs.EVERY:
            hidden = hidden[-1:] if outputs == Outputs.LAST else hidden[:0]
        return self._outputs(hidden.clone())  # the next chunk overwrites them

    def _chunks(self) -> list[Prefill]:
        """The prefill programs that may run."""
        found = [kind for kind in model_programs(self.manifest.sizes) if isinstance(kind, Prefill)]
        return [max(found, key=lambda kind: kind.chunk)] if self.fixed_width else found

    def _hidden(self, chunk: PackedChunk) -> Tensor:
        """The hidden states [C, H] float32 of a chunk's tokens, until the next chunk."""
        program = self._prefills[chunk.program.chunk]
        for name, values in ("tokens", chunk.tokens()), ("positions", chunk.positions()), ("slots", chunk.slots()):
            self.tensors.write(program.inputs[name], array("q", values))
        return program()["hidden"]

    def _outputs(self, hidden: Tensor) -> Iterator[ChunkOutput]:
        for rows in hidden.split(max(self._unembeds)) if len(hidden) else ():
            yield self._unembed(rows)

    def _unembed(self, hidden: Tensor) -> StepOutput:
        """The outputs of a few hidden states, by the smallest program that takes them, with the logits of all
        tokens."""
        count = len(hidden)
        sizes = [rows for rows in self._unembeds if rows >= count]
        program = self._unembeds[max(sizes) if self.fixed_width else min(sizes)]
        program.inputs["hidden"][:count].copy_(hidden)
        found = StepOutput(**{name: output[:count] for name, output in program().items()})
        return found._replace(logits=self.all_logits(found.logits))


def _step_rows(program: BoundProgram) -> StepRows:
    rows = StepRows(*(program.inputs[name] for name in ("tokens", "positions", "slots")))
    rows.positions.fill_(-1)
    return rows


def _gather(program: LoadedProgram, places: Tensor, logits: Tensor) -> Tensor:
    (found,) = program([logits, places])
    return found


def _decode(program: BoundProgram) -> Decoded:
    results = program()
    next_positions = results.pop("next_positions")
    return Decoded(StepOutput(**results), next_positions, program.inputs["positions"])


def bind_programs(
    manifest: Manifest,
    folder: Path,
    tensors: Tensors,
    shared: Mapping[str, Tensor],
    programs: Mapping[str, LoadedProgram],
) -> dict[str, BoundProgram]:
    """Every program of the model with its inputs: its own data buffers, and what programs share: tables, caches,
    weights, adapters. A choice has no buffers of its own: it reads the outputs of others, of any number of rows.

    Raises ArtifactError where a weight is missing or is not what the program was compiled for.
    """
    bound: dict[str, BoundProgram] = {}
    problems = []
    for name in (kind.name for kind in model_programs(manifest.sizes) if kind.name in manifest.programs):
        signature = manifest.programs[name]
        inputs: dict[str, Tensor] = {}
        for item in signature.inputs:
            if item.role == Role.DATA:
                inputs[item.name] = tensors.zeros(item.sizes(0), item.dtype)
            elif item.name not in shared:
                problems.append(f"{name}: {item.role} {item.name} is not in the manifest")
            else:
                tensor = inputs[item.name] = shared[item.name]
                expected, dtype = item.sizes(len(tensor)), tensors.dtype_name(tensor)
                if tuple(tensor.shape) != expected or dtype != item.dtype:
                    found = f"{dtype} {list(tensor.shape)}"
                    problems.append(f"{name}: {item.name} is {found}, expected {item.dtype} {list(expected)}")
        bound[name] = BoundProgram(programs[name], inputs, tuple(item.name for item in signature.outputs))
    raise_all(ArtifactError, f"{folder}: the manifest contradicts itself; build the artifact again", problems)
    return bound
