"""The choice of the next token on the device: what it is made from, what comes of it, what computes it.

A choice is a compiled program where the target compiles it, and torch's operators elsewhere. Both are the functions of
`model.choice`. `sampler_numpy` draws the same tokens without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ..model.sampling_state import Choice
from .sampling_buffers import SamplingBuffers
from .tensors import Tensor, Tensors

# The inputs of a choice's program (artifact/programs.py), in order, to its outputs.
ChoiceProgram: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class StepOutput(NamedTuple):
    """What a program knows of the token after each row.

    logits [B, V] float32, where ranks share the model those of the rank's tokens; top [B] int64, the most likely
    token; top_logprob [B] float32, its log probability; log_total [B] float32, log sum exp of the logits."""

    logits: Tensor
    top: Tensor
    top_logprob: Tensor
    log_total: Tensor

    @classmethod
    def empty(cls, rows: int, vocabulary: int, tensors: Tensors) -> StepOutput:
        """Memory for `rows` rows."""
        logits = tensors.zeros((rows, vocabulary), "float32")
        return cls(logits, tensors.zeros((rows,), "int64"), *(tensors.zeros((rows,), "float32") for _ in range(2)))


class Chosen(NamedTuple):
    """One token for each row.

    tokens     [B] int64
    logprobs   [B] float32, at temperature 1, of the logits as the model gives them
    top        [B, T] int64, the most likely tokens, where the choice was ADJUSTED
    top_logprobs  [B, T] float32, theirs
    """

    tokens: Tensor
    logprobs: Tensor
    top: Tensor | None = None
    top_logprobs: Tensor | None = None


class Chooser:
    """Chooses tokens by what `buffers` hold.

    programs    what computes a choice that is not MOST_LIKELY
    all_logits  of several ranks: logits as a step gives them, to those of all tokens
    """

    def __init__(
        self,
        buffers: SamplingBuffers,
        programs: Mapping[Choice, ChoiceProgram],
        all_logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._buffers, self._programs, self._all_logits = buffers, programs, all_logits

    def choose(self, output: StepOutput, positions: Tensor, slots: Tensor, choice: Choice) -> Chosen:
        """Choose one token a row.

        positions  [B] int64, of the tokens before; -1: no sequence
        slots      [B] int64, by whose buffers a row chooses; an ADJUSTED choice counts the token there

        With Choice.MOST_LIKELY the logits are not read, and nothing is computed.
        """
        if choice == Choice.MOST_LIKELY:
            return Chosen(output.top, output.top_logprob)
        logits = output.logits if self._all_logits is None else self._all_logits(output.logits)
        given = logits, output.log_total, positions, slots
        return Chosen(*self._programs[choice]([*given, *self._buffers.read_by(choice)]))
