"""An executor whose next token is chosen on the device, in torch: sampling and the captured step, whatever makes the
logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch

from ..artifact.manifest import Manifest
from .decode_step import DecodeStep, PendingTorchTokens
from .executor import ChunkOutput, Executor, PrefilledChunk
from .sampler_torch import SamplingBuffers, StepOutput, choose
from .sampling_params import SamplingParams


class TorchExecutor(Executor):
    """A decode step of static shape, and a prefill that a subclass supplies.

    tokens, positions  [B] int64 on the device, which `decode` reads (position -1: the slot is idle)
    decode             runs the decode program; returns the outputs of all slots
    """

    def __init__(
        self, manifest: Manifest, tokens: torch.Tensor, positions: torch.Tensor, decode: Callable[[], StepOutput]
    ) -> None:
        self.manifest = manifest
        self.device = device = tokens.device
        self.overlaps_steps = device.type == "cuda"
        slots, vocabulary = manifest.sizes.max_batch, manifest.model.vocab_size
        self._slots = slots
        self._params = SamplingBuffers(slots, device)
        self._tokens, self._positions = tokens, positions
        self._positions.fill_(-1)
        self._advance = torch.zeros_like(positions)
        self.decode_step = DecodeStep(decode, tokens, positions, self._advance, self._params)
        # What the next choice of each slot is made from, and the log probabilities of the last choice.
        self._kept = self._output = StepOutput.empty(slots, vocabulary, device)
        self._logprobs = torch.zeros(slots, device=device)
        self._placed: tuple[list[int], list[bool]] | None = None  # positions and advances on the device, if known
        with torch.inference_mode():
            if device.type == "cuda":
                self.decode_step.capture()

    @abstractmethod
    def _prefill(self, slot: int, start: int, tokens: Sequence[int], every_token: bool) -> Iterator[PrefilledChunk]:
        """`prefill`, under inference mode while it runs."""

    def _idle_position(self, length: int) -> int:
        """The position that a step has for a slot that takes no part and holds `length` tokens."""
        return -1

    def prefill(self, slot: int, start: int, tokens: Sequence[int], every_token: bool) -> Iterator[PrefilledChunk]:
        chunks = self._prefill(slot, start, tokens, every_token)
        while True:
            with torch.inference_mode():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield PrefilledChunk(chunk.count, _under_inference_mode(chunk.outputs))
            del chunk  # holds the chunk's hidden states, which need not stay while the next chunk is computed

    @torch.inference_mode()
    def decode(self, tokens: dict[int, int], lengths: Sequence[int]) -> torch.Tensor:
        self._tokens.copy_(torch.tensor([tokens.get(slot, 0) for slot in range(self._slots)], device="cpu"))
        self._place(list(tokens), lengths)
        return self.decode_step.run(sampled=False).logits.clone()

    def to_host(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(arrays)).cpu()

    def token_array(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, device=self.device)

    @torch.inference_mode()
    def set_sampling(self, params: Sequence[SamplingParams]) -> None:
        self._params.set(params)

    @torch.inference_mode()
    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        assert isinstance(output, StepOutput)
        for kept, row in zip(self._kept, output, strict=True):
            kept[slot].copy_(row[0])
        self._output = self._kept

    @torch.inference_mode()
    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        self._place(slots, lengths)
        self._positions.sub_(self._advance)  # positions of the tokens before, as in a step
        tokens, self._logprobs = choose(self._output, self._positions, self._params, sampled)
        self._tokens.copy_(tokens)
        self._placed = None

    @torch.inference_mode()
    def step(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        self._place(slots, lengths)
        self._output = self.decode_step.run(sampled)
        assert self.decode_step.logprobs is not None
        self._logprobs = self.decode_step.logprobs

    def pending_tokens(self, keep_logits: bool) -> PendingTorchTokens:
        return PendingTorchTokens(self._tokens, self._logprobs, self._output.logits if keep_logits else None)

    def _chunk_for(self, remaining: int) -> int:
        """The smallest chunk that takes all remaining tokens, or the largest chunk there is."""
        chunks = sorted(self.manifest.sizes.prefill_chunks)
        return next((chunk for chunk in chunks if chunk >= remaining), chunks[-1])

    def _place(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Give the step the positions of the next token of `slots`; all other slots are idle."""
        active = [slot in slots for slot in range(self._slots)]
        positions = [
            length if moves else self._idle_position(length) for length, moves in zip(lengths, active, strict=True)
        ]
        if (positions, active) != self._placed:
            self._positions.copy_(torch.tensor(positions, device="cpu"))
            self._advance.copy_(torch.tensor(active, device="cpu"))
        # The step advances positions itself, so that the next one finds them in place.
        self._placed = [position + moves for position, moves in zip(positions, active, strict=True)], active


def _under_inference_mode(outputs: Iterator[ChunkOutput]) -> Iterator[ChunkOutput]:
    while True:
        with torch.inference_mode():
            output = next(outputs, None)
        if output is None:
            return
        yield output
        del output
