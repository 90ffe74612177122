"""An executor whose next token is chosen on the device: sampling and the captured steps, whatever makes the logits."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..artifact.manifest import Manifest
from ..model.sampling_state import Choice
from .choosing import ChoiceProgram, Chooser, Chosen, StepOutput
from .decode_step import Decoded, DecodeStep, FetchedTokens, StepRows
from .executor import ChunkOutput, Executor, Outputs, Part, Sampling
from .sampling_buffers import SamplingBuffers
from .tensors import Tensor, Tensors


@dataclass(frozen=True)
class Placement:
    """What the rows of a step hold.

    width      the step's
    slots      of each row, whether its sequence takes part or not; None: no sequence
    positions  of each row
    moving     whether the row's sequence takes part
    """

    width: int
    slots: list[int | None]
    positions: list[int]
    moving: list[bool]

    @property
    def active(self) -> list[int | None]:
        """The slot of each row whose sequence takes part."""
        return [slot if moves else None for slot, moves in zip(self.slots, self.moving, strict=True)]

    def after_step(self) -> Placement:
        """The same rows, one token later."""
        moved = [position + moves for position, moves in zip(self.positions, self.moving, strict=True)]
        return replace(self, positions=moved)


class DeviceExecutor(Executor):
    """Decode steps of static shape, and a prefill that a subclass supplies.

    tensors  of the device
    rows     by width: what the decode program of that width reads
    decode   by width: runs that program on its rows
    choices  what computes each choice but MOST_LIKELY
    gather   of several ranks: logits [R, those of a rank] to [R, V]
    """

    def __init__(
        self,
        manifest: Manifest,
        tensors: Tensors,
        rows: Mapping[int, StepRows],
        decode: Mapping[int, Callable[[], Decoded]],
        choices: Mapping[Choice, ChoiceProgram],
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.manifest, self.tensors = manifest, tensors
        slots, vocabulary = manifest.sizes.max_batch, manifest.model.vocab_size
        # No method: the chooser has it, and a circle would free graphs and code in any order, and late.
        self.all_logits = partial(_all_logits, gather, vocabulary)
        self.overlaps_steps = tensors.on_gpu
        with tensors.working():
            self._sampling = SamplingBuffers(slots, vocabulary, tensors)
            self._chooser = Chooser(self._sampling, choices, self.all_logits)
            self.steps = {
                width: DecodeStep(decode[width], rows[width], self._chooser, tensors) for width in manifest.sizes.widths
            }
            # What the first choice of each slot is made from, and the last token of each slot unless a step has it.
            self._kept = StepOutput.empty(slots, vocabulary, tensors)
            self._tokens = tensors.zeros((slots,), "int64")
            self._placed: Placement | None = None  # what the rows of one step hold, tokens included, if known
            self._pending: tuple[list[int | None], Chosen, Tensor] | None = None
            if tensors.on_gpu:  # the others are captured when they are first needed
                self.steps[min(self.steps)].capture(Choice.MOST_LIKELY)

    @abstractmethod
    def _prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        """`prefill`. It runs in `tensors.working`, as its outputs do too."""

    def _placement(self, slots: Sequence[int], lengths: Sequence[int]) -> Placement:
        """The rows of a step that appends a token to the sequences of `slots`, by the lengths of all slots."""
        sizes = self.manifest.sizes
        idle = (sizes.max_batch if self.fixed_width else sizes.width_for(len(slots))) - len(slots)
        return Placement(
            width=len(slots) + idle,
            slots=[*slots, *[None] * idle],
            positions=[*(lengths[slot] for slot in slots), *[-1] * idle],
            moving=[*[True] * len(slots), *[False] * idle],
        )

    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        with self.tensors.working():
            blocks = self._prefill(part, outputs)
        return self._while_working(blocks)

    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> Any:
        with self.tensors.working():
            logits = self.tensors.zeros(self._kept.logits.shape, "float32")
            if tokens:
                self._fetch_tokens()
                slots = list(tokens)
                self.tensors.put_rows(self._tokens, slots, self.tensors.numbers(list(tokens.values())))
                step, placed = self._place(slots, lengths)
                output, _ = step.run(Choice.MOST_LIKELY)
                moved = [row for row, moves in enumerate(placed.moving) if moves]
                found = self.all_logits(self.tensors.rows(output.logits, moved))
                self.tensors.put_rows(logits, slots, found)
            return logits

    def logprobs(self, output: ChunkOutput, tokens: Sequence[int]) -> Callable[[], Any]:
        assert isinstance(output, StepOutput)
        with self.tensors.working():
            fetched = self.tensors.fetch([self.tensors.picked(output.logits, tokens), output.log_total])

        def wait() -> Any:
            logits, log_total = fetched.wait()
            return logits - log_total

        return wait

    def joined(self, arrays: Sequence[Any]) -> Any:
        return self.tensors.joined(arrays)

    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        with self.tensors.working():
            self._sampling.set(given)

    def allow(self, masks: Mapping[int, bytes]) -> None:
        with self.tensors.working():
            self._sampling.allow(masks)

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        assert isinstance(output, StepOutput)
        with self.tensors.working():
            for kept, row in zip(self._kept, output, strict=True):
                kept[slot : slot + 1].copy_(row[:1])

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        with self.tensors.working():
            self._fetch_tokens()
            output = StepOutput(*(self.tensors.rows(kept, slots) for kept in self._kept))
            last = self.tensors.numbers([lengths[slot] - 1 for slot in slots])
            found = self._chooser.choose(output, last, self.tensors.numbers(slots), choice)
            self.tensors.put_rows(self._tokens, slots, found.tokens)
            self._pending = list(slots), found, output.logits

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        with self.tensors.working():
            step, placed = self._place(slots, lengths)
            output, found = step.run(choice)
            self._pending = placed.active, found, output.logits

    def pending_tokens(self, keep_logits: bool) -> FetchedTokens:
        assert self._pending is not None  # a choice was made before
        slots, chosen, logits = self._pending
        with self.tensors.working():
            kept = self.all_logits(logits) if keep_logits else None
            return FetchedTokens(slots, chosen, kept, self.tensors)

    def _chunk_for(self, remaining: int) -> int:
        """The smallest chunk that takes all remaining tokens, or the largest chunk there is."""
        chunks = sorted(self.manifest.sizes.prefill_chunks)
        return next((chunk for chunk in chunks if chunk >= remaining), chunks[-1])

    def _place(self, slots: Sequence[int], lengths: Sequence[int]) -> tuple[DecodeStep, Placement]:
        """Prepare the rows of the step that appends a token to the sequences of `slots`.

        A step leaves tokens and positions as its next run needs them. They are written only where they differ, such as
        when a sequence joins or leaves.
        """
        placed = self._placement(slots, lengths)
        step = self.steps[placed.width]
        if placed != self._placed:
            self._fetch_tokens()
            self._write_rows(step.rows, placed)
        self._placed = placed.after_step()
        return step, placed

    def _write_rows(self, rows: StepRows, placed: Placement) -> None:
        # Rows without a sequence may have the slot and the token of any: they write where nothing is read.
        of_rows = [slot or 0 for slot in placed.slots]
        rows.tokens.copy_(self.tensors.rows(self._tokens, of_rows))
        self.tensors.write(rows.slots, array("q", of_rows))
        self.tensors.write(rows.positions, array("q", placed.positions))

    def _fetch_tokens(self) -> None:
        """Take the last tokens from the step that has them. Its rows are written again before it runs again."""
        if self._placed is None:
            return
        rows = {row: slot for row, slot in enumerate(self._placed.active) if slot is not None}
        tokens = self.steps[self._placed.width].rows.tokens
        self.tensors.put_rows(self._tokens, list(rows.values()), self.tensors.rows(tokens, list(rows)))
        self._placed = None

    def _while_working(self, outputs: Iterator[ChunkOutput]) -> Iterator[ChunkOutput]:
        while True:
            with self.tensors.working():
                output = next(outputs, None)
            if output is None:
                return
            yield output
            del output


def _all_logits(gather: Callable[[Tensor], Tensor] | None, vocabulary: int, logits: Tensor) -> Tensor:
    """Logits [R, V] of all tokens. Where ranks share the model, all of them call it with their own."""
    return logits if gather is None or logits.shape[-1] == vocabulary else gather(logits)
