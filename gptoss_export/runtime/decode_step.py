"""The decode step on the device: one call of the decode program, the choice of the next token, the advance of
positions.

On CUDA the step is captured once into a CUDA graph, so that it costs the host one launch. Tokens and positions are in
buffers that the step itself rewrites: its choice is the next step's input, and the host may read it while the next step
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cuda.driver import own_stream
from .cuda.early_launch import launch_early
from .executor import PendingTokens
from .sampler_torch import SamplingBuffers, StepOutput, choose


@dataclass(frozen=True)
class CapturedStep:
    """A captured step, its results, and how many of its kernels are launched early."""

    graph: torch.cuda.CUDAGraph
    output: StepOutput
    logprobs: torch.Tensor
    early_launches: int


class DecodeStep:
    """The step over all slots.

    decode     runs the decode program on the buffers below
    tokens     [B] int64, read and replaced by the chosen tokens
    positions  [B] int64, read and advanced; -1: the slot is idle
    advance    [B] int64, by how much a step moves each position: 1, or 0 where idle

    After `run`, `output` and `logprobs` [B] are those of the step.
    """

    def __init__(
        self,
        decode: Callable[[], StepOutput],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        advance: torch.Tensor,
        params: SamplingBuffers,
    ) -> None:
        # Declared first: attributes are freed in this order, and graphs must go before the code of their kernels.
        self.captured: dict[bool, CapturedStep] = {}
        self.tokens, self.positions, self.advance = tokens, positions, advance
        self._decode, self._params = decode, params
        self.output: StepOutput | None = None
        self.logprobs: torch.Tensor | None = None

    def run(self, sampled: bool) -> StepOutput:
        """Advance every active sequence by one token. sampled False: all take the most likely token."""
        if self.tokens.device.type != "cuda":
            self.output, self.logprobs = self._advance(sampled)
            return self.output
        if sampled not in self.captured:
            self.captured[sampled] = self._capture(sampled)
        captured = self.captured[sampled]
        self.output, self.logprobs = captured.output, captured.logprobs
        captured.graph.replay()
        return self.output

    def forget(self) -> None:
        """Drop the captured steps; each is captured again before it runs again."""
        self.captured.clear()

    def capture(self) -> None:
        """Capture the greedy step now. A sampled one is captured when it is first needed."""
        self.captured[False] = self._capture(sampled=False)

    def _capture(self, sampled: bool) -> CapturedStep:
        """Capture the step. All slots are idle meanwhile, which leaves the caches as they are."""
        buffers = self.tokens, self.positions, self.advance
        saved = [buffer.clone() for buffer in buffers]
        self.positions.fill_(-1)
        self.advance.zero_()
        self._advance(sampled)  # the first call allocates
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=own_stream(self.tokens.device)):
            output, logprobs = self._advance(sampled)
        early_launches = launch_early(graph.raw_cuda_graph())
        graph.instantiate()
        for buffer, before in zip(buffers, saved, strict=True):
            buffer.copy_(before)
        return CapturedStep(graph, output, logprobs, early_launches)

    def _advance(self, sampled: bool) -> tuple[StepOutput, torch.Tensor]:
        output = self._decode()
        tokens, logprobs = choose(output, self.positions, self._params, sampled)
        self.tokens.copy_(tokens)
        self.positions.add_(self.advance)
        return output, logprobs


class PendingTorchTokens(PendingTokens):
    """Copies tokens and log probabilities to pinned memory; the next step can be launched meanwhile."""

    def __init__(self, tokens: torch.Tensor, logprobs: torch.Tensor, logits: torch.Tensor | None) -> None:
        self._event = torch.cuda.Event() if tokens.device.type == "cuda" else None
        self._results = [_to_host(tensor) for tensor in (tokens, logprobs)]
        self._logits = None if logits is None else logits.clone()
        if self._event is not None:
            self._event.record()

    def wait(self) -> tuple[list[int], list[float], torch.Tensor | None]:
        if self._event is not None:
            self._event.synchronize()
        tokens, logprobs = (result.tolist() for result in self._results)
        return tokens, logprobs, None if self._logits is None else self._logits.cpu()


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)
