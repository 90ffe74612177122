"""What all slots choose their tokens by, on the device (`model.sampling_state`). The host writes it between steps.

The tensors of adjusted choices are as large as the vocabulary. They are made when a sequence first needs them. A step
counts the tokens that it chooses itself, so that the host need not know them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from ..model.sampling_state import DRAWING, IN_PROMPT, MASK_WORD, PENALTIES, Choice, SlotState, adjusting
from .executor import Sampling
from .tensors import Tensor, Tensors


class SamplingBuffers:
    """The tensors of all slots, for choices among `vocabulary` tokens."""

    def __init__(self, slots: int, vocabulary: int, tensors: Tensors) -> None:
        self._slots, self._vocabulary, self._tensors = slots, vocabulary, tensors
        self._drawing = self._made(DRAWING)
        self._made_adjusting: dict[str, Tensor] = {}

    def read_by(self, choice: Choice) -> list[Tensor]:
        """The tensors that a choice reads, in the order of its program."""
        adjusting = self._adjusting() if choice == Choice.ADJUSTED else {}
        return [*self._drawing.values(), *adjusting.values()]

    def set(self, given: Mapping[int, Sampling]) -> None:
        """What some slots choose by from now on; the others keep theirs."""
        self._set_numbers(DRAWING, self._drawing, given)
        if not self._made_adjusting and not any(sampling.params.adjusts for sampling in given.values()):
            return
        buffers = self._adjusting()
        self._set_numbers(PENALTIES, buffers, given)
        for slot, sampling in given.items():
            self._set_adjusting({name: buffer[slot : slot + 1] for name, buffer in buffers.items()}, sampling)

    def allow(self, masks: Mapping[int, bytes]) -> None:
        """The tokens that some slots can choose next: a bit for each, in little-endian words of 32."""
        for slot, mask in masks.items():
            self._tensors.write(self._adjusting()["allowed"][slot], array("i", mask))

    def _adjusting(self) -> dict[str, Tensor]:
        if not self._made_adjusting:
            self._made_adjusting = self._made(adjusting(self._vocabulary))
        return self._made_adjusting

    def _made(self, kinds: Iterable[SlotState]) -> dict[str, Tensor]:
        return {
            kind.name: self._tensors.empty((self._slots, *kind.shape), kind.dtype).fill_(kind.start) for kind in kinds
        }

    def _set_numbers(
        self, kinds: Iterable[SlotState], buffers: Mapping[str, Tensor], given: Mapping[int, Sampling]
    ) -> None:
        """Parameters of which a slot has one number each."""
        slots = list(given)
        for kind in kinds:
            values = [getattr(sampling.params, kind.name) for sampling in given.values()]
            self._tensors.put_rows(buffers[kind.name], slots, self._tensors.numbers(values, kind.dtype))

    def _set_adjusting(self, of_slot: Mapping[str, Tensor], sampling: Sampling) -> None:
        params, write = sampling.params, self._tensors.write
        of_slot["counts"].fill_(0)
        if params.penalizes:
            write(of_slot["counts"], self._counts(sampling))
        biases = params.logit_bias
        for name, cells in ("bias_ids", array("q", biases.keys())), ("biases", array("f", biases.values())):
            of_slot[name].fill_(0)
            if cells:
                write(of_slot[name].view(-1)[: len(cells)], cells)
        of_slot["allowed"].fill_(-1)
        words = array("I", bytes(of_slot["stops"].nbytes))
        for token in sampling.stop_tokens:
            words[token // MASK_WORD] |= 1 << token % MASK_WORD
        write(of_slot["stops"], array("i", words.tobytes()))
        until = len(sampling.prompt) - 1 + params.min_new_tokens if params.min_new_tokens else -1
        write(of_slot["until"], array("q", [until]))

    def _counts(self, sampling: Sampling) -> array:
        counts = array("i", bytes(4 * self._vocabulary))
        for token in sampling.tokens:
            counts[token] += 1
        for token in set(sampling.prompt):
            counts[token] += IN_PROMPT
        return counts
