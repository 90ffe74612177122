"""An executor whose next token is chosen on the device, with torch's tensors: sampling and the captured steps, whatever
makes the logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..artifact.manifest import Manifest
from ..model.sampling_state import Choice
from .choosing import IN_TORCH, ChoiceProgram, Chooser, Chosen, StepOutput
from .decode_step import Decoded, DecodeStep, PendingTorchTokens, StepRows
from .executor import ChunkOutput, Executor, Outputs, Part, Sampling
from .sampling_buffers import SamplingBuffers
from .staging import on_device


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


class TorchExecutor(Executor):
    """Decode steps of static shape, and a prefill that a subclass supplies.

    rows     by width: what the decode program of that width reads
    decode   by width: runs that program on its rows
    choices  what computes a choice that is not MOST_LIKELY
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: Mapping[int, StepRows],
        decode: Mapping[int, Callable[[], Decoded]],
        choices: Mapping[Choice, ChoiceProgram] = IN_TORCH,
    ) -> None:
        self.manifest = manifest
        slots, vocabulary = manifest.sizes.max_batch, manifest.model.vocab_size
        self.device = device = rows[slots].tokens.device
        self.overlaps_steps = device.type == "cuda"
        self._sampling = SamplingBuffers(slots, vocabulary, device)
        self._chooser = Chooser(self._sampling, choices)
        self.steps = {width: DecodeStep(decode[width], rows[width], self._chooser) for width in manifest.sizes.widths}
        # What the first choice of each slot is made from, and the last token of each slot unless a step has it.
        self._kept = StepOutput.empty(slots, vocabulary, device)
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self._placed: Placement | None = None  # what the rows of one step hold, tokens included, if known
        self._pending: tuple[list[int | None], Chosen, torch.Tensor] | None = None
        with torch.inference_mode():
            if device.type == "cuda":  # the others are captured when they are first needed
                self.steps[min(self.steps)].capture(Choice.MOST_LIKELY)

    @abstractmethod
    def _prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        """`prefill`, under inference mode, as the outputs are too."""

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
        with torch.inference_mode():
            blocks = self._prefill(part, outputs)
        return _under_inference_mode(blocks)

    @torch.inference_mode()
    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> torch.Tensor:
        logits = self._kept.logits.new_zeros(self._kept.logits.shape)
        if tokens:
            self._fetch_tokens()
            slots = self._ids(tokens)
            self._tokens[slots] = self._ids(tokens.values())
            step, placed = self._place(list(tokens), lengths)
            output, _ = step.run(Choice.MOST_LIKELY)
            logits[slots] = output.logits[self._ids(row for row, moves in enumerate(placed.moving) if moves)]
        return logits

    def to_host(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(arrays)).cpu()

    def token_array(self, tokens: Sequence[int]) -> torch.Tensor:
        return self._ids(tokens)

    @torch.inference_mode()
    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        self._sampling.set(given)

    @torch.inference_mode()
    def allow(self, masks: Mapping[int, bytes]) -> None:
        self._sampling.allow(masks)

    @torch.inference_mode()
    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        assert isinstance(output, StepOutput)
        for kept, row in zip(self._kept, output, strict=True):
            kept[slot].copy_(row[0])

    @torch.inference_mode()
    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        self._fetch_tokens()
        chosen = self._ids(slots)
        output = StepOutput(*(kept[chosen] for kept in self._kept))
        last = self._ids(lengths[slot] - 1 for slot in slots)
        found = self._chooser.choose(output, last, chosen, choice)
        self._tokens[chosen] = found.tokens
        self._pending = list(slots), found, output.logits

    @torch.inference_mode()
    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        step, placed = self._place(slots, lengths)
        output, found = step.run(choice)
        self._pending = placed.active, found, output.logits

    def pending_tokens(self, keep_logits: bool) -> PendingTorchTokens:
        assert self._pending is not None  # a choice was made before
        slots, chosen, logits = self._pending
        return PendingTorchTokens(slots, chosen, logits if keep_logits else None)

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
        of_rows = self._ids(slot or 0 for slot in placed.slots)
        rows.tokens.copy_(self._tokens[of_rows])
        rows.slots.copy_(of_rows)
        rows.positions.copy_(self._ids(placed.positions))

    def _ids(self, numbers: Iterable[int]) -> torch.Tensor:
        return on_device(list(numbers), self.device)

    def _fetch_tokens(self) -> None:
        """Take the last tokens from the step that has them. Its rows are written again before it runs again."""
        if self._placed is None:
            return
        rows = {row: slot for row, slot in enumerate(self._placed.active) if slot is not None}
        tokens = self.steps[self._placed.width].rows.tokens
        self._tokens[self._ids(rows.values())] = tokens[self._ids(rows)]
        self._placed = None


def _under_inference_mode(outputs: Iterator[ChunkOutput]) -> Iterator[ChunkOutput]:
    while True:
        with torch.inference_mode():
            output = next(outputs, None)
        if output is None:
            return
        yield output
        del output
