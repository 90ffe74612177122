"""The choice of the next token on the device: what it is made from, what comes of it, what computes it.

A choice is a compiled program where the target compiles it, and torch's operators elsewhere. Both are the functions of
`model.choice`. `sampler_numpy` draws the same tokens without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch

from ..model.choice import choose_adjusted, choose_drawn, choose_limited, logprob
from ..model.sampling_state import Choice
from .sampling_buffers import SamplingBuffers

# The inputs of a choice's program (artifact/programs.py), in order, to its outputs.
ChoiceProgram: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]

IN_TORCH: Mapping[Choice, ChoiceProgram] = {
    Choice.DRAWN: lambda inputs: choose_drawn(*inputs),
    Choice.LIMITED: lambda inputs: choose_limited(*inputs),
    Choice.ADJUSTED: lambda inputs: choose_adjusted(*inputs),
}


class StepOutput(NamedTuple):
    """What a program knows of the token after each row.

    logits [B, V] float32; top [B] int64, the most likely token; top_logprob [B] float32, its log probability;
    log_total [B] float32, log sum exp of the logits."""

    logits: torch.Tensor
    top: torch.Tensor
    top_logprob: torch.Tensor
    log_total: torch.Tensor

    @classmethod
    def empty(cls, rows: int, vocabulary: int, device: torch.device) -> StepOutput:
        ids = torch.zeros(rows, dtype=torch.int64, device=device)
        logprobs, totals = torch.zeros(2, rows, device=device)
        return cls(torch.zeros(rows, vocabulary, device=device), ids, logprobs, totals)

    @classmethod
    def of(cls, logits: torch.Tensor) -> StepOutput:
        """From logits [B, V] of any float dtype."""
        logits = logits.float()
        best, top = logits.max(dim=-1)
        log_total = (logits - best[:, None]).exp().sum(dim=-1).log() + best
        return cls(logits, top, best - log_total, log_total)

    def logprob(self, tokens: torch.Tensor) -> torch.Tensor:
        """Natural log of the probability, at temperature 1, of tokens [B]; [B] float32."""
        return logprob(self.logits, self.log_total, tokens)


class Chosen(NamedTuple):
    """One token for each row.

    tokens     [B] int64
    logprobs   [B] float32, at temperature 1, of the logits as the model gives them
    top        [B, T] int64, the most likely tokens, where the choice was ADJUSTED
    top_logprobs  [B, T] float32, theirs
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    top: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


class Chooser:
    """Chooses tokens by what `buffers` hold. programs: what computes a choice that is not MOST_LIKELY."""

    def __init__(self, buffers: SamplingBuffers, programs: Mapping[Choice, ChoiceProgram]) -> None:
        self._buffers, self._programs = buffers, programs

    def choose(self, output: StepOutput, positions: torch.Tensor, slots: torch.Tensor, choice: Choice) -> Chosen:
        """Choose one token a row.

        positions  [B] int64, of the tokens before; -1: no sequence
        slots      [B] int64, by whose buffers a row chooses; an ADJUSTED choice counts the token there

        With Choice.MOST_LIKELY the logits are not read, and nothing is computed.
        """
        if choice == Choice.MOST_LIKELY:
            return Chosen(output.top, output.top_logprob)
        given = output.logits, output.log_total, positions, slots
        return Chosen(*self._programs[choice]([*given, *self._buffers.read_by(choice)]))
