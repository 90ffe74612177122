"""Changes logits before a token is chosen, on the device, in torch: penalties, bias, allowed tokens. Shapes are static.

The state of all slots is in buffers that are as large as the vocabulary. They are made when a sequence first needs
them. A step counts the tokens that it chooses itself, so that the host need not know them.
`adjust_numpy` does the same without torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .executor import Sampling
from .sampling_params import MASK_WORD, MOST_BIASES
from .staging import on_device

_IN_PROMPT = 1 << 30  # in a count: the token is in the prompt; below: how often it is in the answer


class Adjustments:
    """What the choices of all slots depend on, [S, ...] on the device.

    penalties  [S, 3] float32: repetition, presence, frequency
    counts     [S, V] int32: of each token in the answer, and whether it is in the prompt
    biases     ids [S, MOST_BIASES] int64 and values float32; unused: id 0, value 0
    allowed    [S, V / 32] int32: a bit for each token that can be chosen
    stops      [S, V / 32] int32: a bit for each stop token
    until      [S] int64: the first position after which stop tokens can be chosen
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        words = -(-vocabulary // MASK_WORD)
        self._device, self._vocabulary = device, vocabulary
        self._penalties = torch.tensor([1.0, 0.0, 0.0], device=device).repeat(slots, 1)
        self._counts = torch.zeros(slots, vocabulary, dtype=torch.int32, device=device)
        self._bias_ids = torch.zeros(slots, MOST_BIASES, dtype=torch.int64, device=device)
        self._biases = torch.zeros(slots, MOST_BIASES, device=device)
        self._allowed = torch.full((slots, words), -1, dtype=torch.int32, device=device)
        self._stops = torch.zeros(slots, words, dtype=torch.int32, device=device)
        self._until = torch.full((slots,), -1, dtype=torch.int64, device=device)

    def set(self, given: Mapping[int, Sampling]) -> None:
        """What some slots choose by from now on."""
        for slot, sampling in given.items():
            params = sampling.params
            numbers = [params.repetition_penalty, params.presence_penalty, params.frequency_penalty]
            self._penalties[slot].copy_(torch.tensor(numbers))
            self._counts[slot].zero_()
            if params.penalizes:
                prompt, answer = (
                    on_device(list(tokens), self._device) for tokens in (sampling.prompt, sampling.tokens)
                )
                self._counts[slot].index_add_(0, answer, torch.ones_like(answer, dtype=torch.int32))
                self._counts[slot, prompt.unique()] += _IN_PROMPT
            self._bias_ids[slot].zero_()
            self._biases[slot].zero_()
            if count := len(params.logit_bias):
                self._bias_ids[slot, :count] = on_device(list(params.logit_bias), self._device)
                self._biases[slot, :count] = torch.tensor(list(params.logit_bias.values())).to(self._device)
            self._allowed[slot].fill_(-1)
            stops = torch.zeros(self._stops.size(1) * MASK_WORD, dtype=torch.bool)
            stops[list(sampling.stop_tokens)] = True
            self._stops[slot].copy_(_words(stops))
            self._until[slot] = len(sampling.prompt) - 1 + params.min_new_tokens if params.min_new_tokens else -1

    def allow(self, masks: Mapping[int, bytes]) -> None:
        """The tokens that some slots can choose next: a bit for each, in little-endian words of 32."""
        for slot, mask in masks.items():
            self._allowed[slot].copy_(torch.frombuffer(bytearray(mask), dtype=torch.int32))

    def apply(self, logits: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] float32 of some rows as the choice takes them. positions [B]: of the tokens before."""
        repetition, presence, frequency = self._penalties[slots].split(1, dim=1)
        counts = self._counts[slots]
        answered = counts & (_IN_PROMPT - 1)
        found = torch.where(counts > 0, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        found = found - presence * (answered > 0) - frequency * answered
        found = found.scatter_add(1, self._bias_ids[slots], self._biases[slots])
        allowed = self._bits(self._allowed, slots)
        early = self._bits(self._stops, slots) & (positions < self._until[slots])[:, None]
        wanted = allowed & ~early
        # Where only stop tokens are allowed, they are chosen early.
        wanted = torch.where(wanted.any(dim=1, keepdim=True), wanted, allowed)
        return found.masked_fill(~wanted, float("-inf"))

    def count(self, tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> None:
        """The tokens [B] were chosen. Rows whose position is -1 have no sequence."""
        self._counts.index_put_((slots, tokens), (positions >= 0).int(), accumulate=True)

    def _bits(self, words: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """[B, V] bool of the words of some slots."""
        shift = torch.arange(MASK_WORD, dtype=torch.int32, device=self._device)
        bits = (words[slots][:, :, None] >> shift) & 1
        return bits.flatten(1)[:, : self._vocabulary].bool()


def _words(bits: torch.Tensor) -> torch.Tensor:
    """Bits [32 n] as little-endian words [n] int32."""
    shifted = bits.view(-1, MASK_WORD).long() << torch.arange(MASK_WORD)
    total = shifted.sum(dim=1)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).int()
