"""What all slots choose their tokens by, on the device (`model.sampling_state`). The host writes it between steps.

The tensors of adjusted choices are as large as the vocabulary. They are made when a sequence first needs them. A step
counts the tokens that it chooses itself, so that the host need not know them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..model.dtypes import torch_dtype
from ..model.sampling_state import DRAWING, IN_PROMPT, MASK_WORD, PENALTIES, Choice, SlotState, adjusting
from .executor import Sampling
from .staging import on_device


class SamplingBuffers:
    """The tensors of all slots, for choices among `vocabulary` tokens."""

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._slots, self._vocabulary, self._device = slots, vocabulary, device
        self._drawing = self._made(DRAWING)
        self._made_adjusting: dict[str, torch.Tensor] = {}

    def read_by(self, choice: Choice) -> list[torch.Tensor]:
        """The tensors that a choice reads, in the order of its program."""
        adjusting = self._adjusting() if choice == Choice.ADJUSTED else {}
        return [*self._drawing.values(), *adjusting.values()]

    def set(self, given: Mapping[int, Sampling]) -> None:
        """What some slots choose by from now on; the others keep theirs."""
        self._set_numbers(self._drawing, given)
        if not self._made_adjusting and not any(sampling.params.adjusts for sampling in given.values()):
            return
        buffers = self._adjusting()
        self._set_numbers({kind.name: buffers[kind.name] for kind in PENALTIES}, given)
        for slot, sampling in given.items():
            self._set_adjusting({name: buffer[slot] for name, buffer in buffers.items()}, sampling)

    def allow(self, masks: Mapping[int, bytes]) -> None:
        """The tokens that some slots can choose next: a bit for each, in little-endian words of 32."""
        for slot, mask in masks.items():
            self._adjusting()["allowed"][slot].copy_(torch.frombuffer(bytearray(mask), dtype=torch.int32))

    def _adjusting(self) -> dict[str, torch.Tensor]:
        if not self._made_adjusting:
            self._made_adjusting = self._made(adjusting(self._vocabulary))
        return self._made_adjusting

    def _made(self, kinds: Iterable[SlotState]) -> dict[str, torch.Tensor]:
        return {
            kind.name: torch.full(
                (self._slots, *kind.shape), kind.start, dtype=torch_dtype(kind.dtype), device=self._device
            )
            for kind in kinds
        }

    def _set_numbers(self, buffers: Mapping[str, torch.Tensor], given: Mapping[int, Sampling]) -> None:
        """Parameters of which a slot has one number each."""
        slots = torch.tensor(list(given), device=self._device)
        for name, buffer in buffers.items():
            values = [getattr(sampling.params, name) for sampling in given.values()]
            buffer[slots] = torch.tensor(values, dtype=buffer.dtype, device=self._device)

    def _set_adjusting(self, of_slot: Mapping[str, torch.Tensor], sampling: Sampling) -> None:
        params, counts = sampling.params, of_slot["counts"]
        counts.zero_()
        if params.penalizes:
            prompt, answer = (on_device(list(tokens), self._device) for tokens in (sampling.prompt, sampling.tokens))
            counts.index_add_(0, answer, torch.ones_like(answer, dtype=torch.int32))
            counts[prompt.unique()] += IN_PROMPT
        of_slot["bias_ids"].zero_()
        of_slot["biases"].zero_()
        if number := len(params.logit_bias):
            of_slot["bias_ids"][:number] = on_device(list(params.logit_bias), self._device)
            of_slot["biases"][:number] = torch.tensor(list(params.logit_bias.values())).to(self._device)
        of_slot["allowed"].fill_(-1)
        stops = torch.zeros(of_slot["stops"].numel() * MASK_WORD, dtype=torch.bool)
        stops[list(sampling.stop_tokens)] = True
        of_slot["stops"].copy_(_words(stops))
        of_slot["until"].fill_(len(sampling.prompt) - 1 + params.min_new_tokens if params.min_new_tokens else -1)


def _words(bits: torch.Tensor) -> torch.Tensor:
    """Bits [32 n] as little-endian words [n] int32."""
    shifted = bits.view(-1, MASK_WORD).long() << torch.arange(MASK_WORD)
    total = shifted.sum(dim=1)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).int()
