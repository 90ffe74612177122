"""A Runner whose next token is chosen on the device: slots, sampling and the captured step, whatever computes the logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..errors import RunError
from ..artifact.manifest import Manifest
from .runner import Runner
from .sampler_torch import SamplingBuffers, Scores, choose, logprob
from .sampling_params import Sampling
from .decode_step import DecodeStep, Reading


class TorchRunner(Runner):
    """A Runner over a decode step of static shape and a prefill. Arrays are torch's."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        decode: Callable[[], Sequence[torch.Tensor]],
    ) -> None:
        """tokens, positions [B] int64 on the device, which `decode` reads (position -1: idle); it returns what `Scores` holds."""
        super().__init__(manifest, folder)
        self._device = device = tokens.device
        self._overlaps = device.type == "cuda"
        self._options = SamplingBuffers(manifest.max_batch, device)
        self._tokens, self._positions = tokens, positions
        self._positions.fill_(-1)
        self._moving = torch.zeros_like(positions)
        self._step = DecodeStep(decode, tokens, positions, self._moving, self._options)
        # What the next choice of each slot is made from, and what the last one was worth.
        self._scores = self._prompt_scores = Scores.empty(manifest.max_batch, manifest.model.vocab_size, device)
        self._logprobs = torch.zeros(manifest.max_batch, device=device)
        self._placed: tuple[list[int], list[bool]] | None = None  # what the device has of positions; None: not known
        with torch.inference_mode():
            if device.type == "cuda":
                self._step.capture()

    @abstractmethod
    def _prefill(self, ids: Sequence[int], slot: int) -> Scores:
        """Append tokens to a slot's sequence; the scores, of one row, after the last of them."""

    @abstractmethod
    def _scores_of(self, ids: Sequence[int], slot: int, claim: int) -> Iterator[Scores]:
        """As `_prefill`, but the scores after every token, in blocks. Checks `claim` before each, under inference mode."""

    def _idle(self, slot: int) -> int:
        """The position that a step has for a slot that takes no part."""
        return -1

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        ids = self._prompt(tokens, slot)
        self._claim()
        return self._prefill(ids, slot).logits[0]

    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[torch.Tensor]:
        blocks = self._scores_of(self._prompt(tokens, slot), slot, self._claim())
        return (scores.logits for scores in blocks)

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        if len(tokens) < 2:
            raise RunError(f"score: found {len(tokens)} tokens, expected 2 or more")
        ids = self._prompt(tokens, slot, fresh=True)
        self.reset(slot)
        following = torch.tensor([*ids[1:], 0], device=self._device)
        scores, row = [], 0
        for rows in self._scores_of(ids, slot, self._claim()):
            scores.append(logprob(rows, following[row : row + rows.top.size(0)]))
            row += rows.top.size(0)
        return torch.cat(scores)[:-1].cpu()

    @torch.inference_mode()
    def _decode(self, ids: dict[int, int]) -> torch.Tensor:
        self._tokens.copy_(torch.tensor([ids.get(slot, 0) for slot in range(len(self._slots))]))
        self._advance(list(ids), sampled=False)
        return self._step.scores.logits.clone()

    def _set(self, options: Sequence[Sampling]) -> None:
        self._options.set(options)

    @torch.inference_mode()
    def _start(self, slot: int, prompt: Sequence[int]) -> None:
        for kept, row in zip(self._prompt_scores, self._prefill(prompt, slot), strict=True):
            kept[slot].copy_(row[0])
        self._scores = self._prompt_scores

    @torch.inference_mode()
    def _choose(self, slots: Sequence[int], sampled: bool) -> None:
        self._place(slots)
        self._positions.sub_(self._moving)  # of the token before, as in a step
        tokens, self._logprobs = choose(self._scores, self._positions, self._options, sampled)
        self._tokens.copy_(tokens)
        self._placed = None

    @torch.inference_mode()
    def _next(self, slots: Sequence[int], sampled: bool) -> None:
        self._advance(slots, sampled)
        self._scores, self._logprobs = self._step.scores, self._step.logprobs

    def _reading(self, keep_logits: bool) -> Reading:
        return Reading(self._tokens, self._logprobs, self._scores.logits if keep_logits else None)

    def _place(self, slots: Sequence[int]) -> None:
        """Positions of the next token of `slots`; all others are idle."""
        moving = [slot in slots for slot in range(len(self._slots))]
        positions = [held.length if moving[slot] else self._idle(slot) for slot, held in enumerate(self._slots)]
        if (positions, moving) != self._placed:
            self._positions.copy_(torch.tensor(positions))
            self._moving.copy_(torch.tensor(moving))
        after = [position + moves for position, moves in zip(positions, moving, strict=True)]
        self._placed = after, moving  # the step moves on by itself

    def _advance(self, slots: Sequence[int], sampled: bool) -> None:
        self._place(slots)
        self._step.run(sampled)
        for slot in slots:
            self._slots[slot].extend(1)
