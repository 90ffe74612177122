"""The decode step of one width on the device: one call of the decode program, the choice of the next token, and copies
of both to where the next step reads them.

On CUDA the step is captured once into a CUDA graph, so that it costs the host one launch. Tokens and positions are in
buffers that the step itself rewrites: its choice is the next step's input, and the host may read it while the next step
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from ..model.sampling_state import Choice
from .choosing import Chooser, Chosen, StepOutput
from .cuda.capture import capture
from .executor import PendingTokens

Item = TypeVar("Item")


@dataclass(frozen=True)
class StepRows:
    """What a decode program reads of its rows, on the device. A row is one sequence of a step.

    tokens     [W] int64, the last token of each sequence
    positions  [W] int64, where it goes; -1: no sequence, except where a target needs another position
    slots      [W] int64, where the sequence's keys and values are
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> StepRows:
        tokens, slots = (torch.zeros(width, dtype=torch.int64, device=device) for _ in range(2))
        return cls(tokens, torch.full_like(tokens, -1), slots)


class Decoded(NamedTuple):
    """What a decode program gives.

    output          of its rows
    next_positions  [W] int64, where their next tokens go
    positions       [W] int64, as the choice takes them: of the tokens before; -1: the row's sequence takes no part
    """

    output: StepOutput
    next_positions: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class CapturedStep:
    """A captured step, its results, and how many of its kernels are launched early."""

    graph: torch.cuda.CUDAGraph
    output: StepOutput
    chosen: Chosen
    early_launches: int


class DecodeStep:
    """The step over the rows of one width.

    decode   runs the decode program on the rows
    rows     what it reads; a step replaces tokens by the chosen ones, and positions by the next ones
    chooser  chooses the tokens
    """

    def __init__(self, decode: Callable[[], Decoded], rows: StepRows, chooser: Chooser) -> None:
        # Declared first: attributes are freed in this order, and graphs must go before the code of their kernels.
        self.captured: dict[Choice, CapturedStep] = {}
        self.rows = rows
        self._decode, self._chooser = decode, chooser

    def run(self, choice: Choice) -> tuple[StepOutput, Chosen]:
        """Advance every sequence by one token; the outputs of the rows, and what was chosen from them. The results hold
        until the next call."""
        if self.rows.tokens.device.type != "cuda":
            return self._advance(choice)
        self.capture(choice)
        captured = self.captured[choice]
        captured.graph.replay()
        return captured.output, captured.chosen

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
        self._advance(choice)  # the first call allocates
        (graph, early_launches), (output, chosen) = capture(lambda: self._advance(choice), self.rows.tokens.device)
        for buffer, before in zip(buffers, saved, strict=True):
            buffer.copy_(before)
        self.captured[choice] = CapturedStep(graph, output, chosen, early_launches)

    def _advance(self, choice: Choice) -> tuple[StepOutput, Chosen]:
        (output, next_positions, positions), rows = self._decode(), self.rows
        chosen = self._chooser.choose(output, positions, rows.slots, choice)
        rows.tokens.copy_(chosen.tokens)
        rows.positions.copy_(next_positions)
        return output, chosen._replace(tokens=rows.tokens)


class PendingTorchTokens(PendingTokens):
    """Copies tokens and log probabilities to pinned memory; the next step can be launched meanwhile.

    rows  the slot of each row, in order; None where a row has no sequence
    """

    def __init__(self, rows: list[int | None], chosen: Chosen, logits: torch.Tensor | None) -> None:
        self._rows = rows
        self._event = torch.cuda.Event() if chosen.tokens.device.type == "cuda" else None
        self._results = [_to_host(tensor) for tensor in chosen if tensor is not None]
        self._logits = None if logits is None else logits.clone()
        if self._event is not None:
            self._event.record()

    def wait(self) -> tuple[dict[int, int], dict[int, float], dict[int, torch.Tensor] | None]:
        if self._event is not None:
            self._event.synchronize()
        tokens, logprobs = (self._by_slot(result.tolist()) for result in self._results[:2])
        return tokens, logprobs, None if self._logits is None else self._by_slot(list(self._logits.cpu()))

    def top_logprobs(self) -> dict[int, list[tuple[int, float]]]:
        if len(self._results) == 2:
            return {}
        ids, logprobs = (result.tolist() for result in self._results[2:])
        return self._by_slot([list(zip(*pair, strict=True)) for pair in zip(ids, logprobs, strict=True)])

    def _by_slot(self, values: list[Item]) -> dict[int, Item]:
        return {slot: value for slot, value in zip(self._rows, values, strict=True) if slot is not None}


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)
