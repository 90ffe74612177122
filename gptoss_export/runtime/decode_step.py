"""The decode step of one width on the device: one call of the decode program, the choice of the next token, and copies
of both to where the next step reads them.

On CUDA the step is captured once into a CUDA graph, so that it costs the host one launch. Tokens and positions are in
buffers that the step itself rewrites: its choice is the next step's input, and the host may read it while the next step
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ..model.sampling_state import Choice
from .choosing import Chooser, Chosen, StepOutput
from .executor import PendingTokens
from .tensors import Captured, Tensor, Tensors

Item = TypeVar("Item")


@dataclass(frozen=True)
class StepRows:
    """What a decode program reads of its rows, on the device. A row is one sequence of a step.

    tokens     [W] int64, the last token of each sequence
    positions  [W] int64, where it goes; -1: no sequence, except where a target needs another position
    slots      [W] int64, where the sequence's keys and values are
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor

    @classmethod
    def empty(cls, width: int, tensors: Tensors) -> StepRows:
        """Rows without sequences."""
        tokens, positions, slots = (tensors.zeros((width,), "int64") for _ in range(3))
        positions.fill_(-1)
        return cls(tokens, positions, slots)


class Decoded(NamedTuple):
    """What a decode program gives.

    output          of its rows
    next_positions  [W] int64, where their next tokens go
    positions       [W] int64, as the choice takes them: of the tokens before; -1: the row's sequence takes no part
    """

    output: StepOutput
    next_positions: Tensor
    positions: Tensor


@dataclass(frozen=True)
class CapturedStep:
    """A captured step and its results."""

    captured: Captured
    output: StepOutput
    chosen: Chosen


class DecodeStep:
    """The step over the rows of one width.

    decode   runs the decode program on the rows
    rows     what it reads; a step replaces tokens by the chosen ones, and positions by the next ones
    chooser  chooses the tokens
    """

    def __init__(self, decode: Callable[[], Decoded], rows: StepRows, chooser: Chooser, tensors: Tensors) -> None:
        # Declared first: attributes are freed in this order, and graphs must go before the code of their kernels.
        self.captured: dict[Choice, CapturedStep] = {}
        self.rows = rows
        self._decode, self._chooser, self._tensors = decode, chooser, tensors

    def run(self, choice: Choice) -> tuple[StepOutput, Chosen]:
        """Advance every sequence by one token; the outputs of the rows, and what was chosen from them. The results hold
        until the next call."""
        if not self._tensors.on_gpu:
            return self._advance(choice)
        self.capture(choice)
        step = self.captured[choice]
        step.captured.graph.replay()
        return step.output, step.chosen

    def forget(self) -> None:
        """Drop the captured steps; each is captured again before it runs again."""
        self.captured.clear()

    def capture(self, choice: Choice) -> None:
        """Capture the step, unless it was captured before. No row has a sequence meanwhile, which leaves the caches as
        they are."""
        if choice in self.captured:
            return
        buffers = self.rows.tokens, self.rows.positions
        saved = [buffer.clone() for buffer in buffers]
        self.rows.positions.fill_(-1)
        if not self._tensors.captures_at_first:
            self._advance(choice)  # it allocates
        captured, (output, chosen) = self._tensors.capture(lambda: self._advance(choice))
        for buffer, before in zip(buffers, saved, strict=True):
            buffer.copy_(before)
        self.captured[choice] = CapturedStep(captured, output, chosen)

    def _advance(self, choice: Choice) -> tuple[StepOutput, Chosen]:
        (output, next_positions, positions), rows = self._decode(), self.rows
        chosen = self._chooser.choose(output, positions, rows.slots, choice)
        rows.tokens.copy_(chosen.tokens)
        rows.positions.copy_(next_positions)
        return output, chosen._replace(tokens=rows.tokens)


class FetchedTokens(PendingTokens):
    """Tokens and log probabilities on their way to the host; the next step can be launched meanwhile.

    rows  the slot of each row, in order; None where a row has no sequence
    """

    def __init__(self, rows: list[int | None], chosen: Chosen, logits: Tensor | None, tensors: Tensors) -> None:
        self._rows, self._tensors = rows, tensors
        self._results = tensors.fetch([tensor for tensor in chosen if tensor is not None])
        self._has_top = chosen.top is not None
        self._logits = None if logits is None else logits.clone()

    def wait(self) -> tuple[dict[int, int], dict[int, float], dict[int, Any] | None]:
        tokens, logprobs = (self._by_slot(result.tolist()) for result in self._results.wait()[:2])
        if self._logits is None:
            return tokens, logprobs, None
        (logits,) = self._tensors.fetch([self._logits]).wait()
        return tokens, logprobs, self._by_slot(list(logits))

    def top_logprobs(self) -> dict[int, list[tuple[int, float]]]:
        if not self._has_top:
            return {}
        ids, logprobs = (result.tolist() for result in self._results.wait()[2:])
        return self._by_slot([list(zip(*pair, strict=True)) for pair in zip(ids, logprobs, strict=True)])

    def _by_slot(self, values: list[Item]) -> dict[int, Item]:
        return {slot: value for slot, value in zip(self._rows, values, strict=True) if slot is not None}
