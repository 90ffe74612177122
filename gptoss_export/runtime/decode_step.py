"""The decode step: one program call, the choice of the next token and the advance to it, on the device.

On CUDA the step is captured once into a CUDA graph, so that it costs the host one launch. Tokens and
positions live in buffers that the step itself rewrites: its own choice is the next step's input, and the
host may read it while the next step runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .cuda.driver import own_stream
from .cuda.early_launch import launch_early
from .sampler_torch import SamplingBuffers, Scores, choose


@dataclass(frozen=True)
class _Captured:
    """A recorded step, its results, and how many of its kernels are launched early."""

    graph: torch.cuda.CUDAGraph
    scores: Scores
    logprobs: torch.Tensor
    early: int


class DecodeStep:
    """tokens, positions [B] int64 in and out (position -1: idle), advance [B] int64 by how much a step moves each
    position (1, or 0 where idle); after `run`, scores and logprobs [B]."""

    def __init__(
        self,
        decode: Callable[[], Sequence[torch.Tensor]],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        advance: torch.Tensor,
        options: SamplingBuffers,
    ) -> None:
        # Before `_decode`, so that graphs go first when the step does: it may hold the code of their kernels.
        self._captured: dict[bool, _Captured] = {}
        self.tokens, self.positions, self.advance = tokens, positions, advance
        self._decode, self._options = decode, options
        self.scores: Scores | None = None
        self.logprobs: torch.Tensor | None = None

    def run(self, sampled: bool) -> None:
        """Advance every active sequence by one token; `sampled` False: all of them take the most likely."""
        if self.tokens.device.type != "cuda":
            self.scores, self.logprobs = self._advance(sampled)
            return
        if sampled not in self._captured:
            self._captured[sampled] = self._capture(sampled)
        captured = self._captured[sampled]
        self.scores, self.logprobs = captured.scores, captured.logprobs
        captured.graph.replay()

    def forget(self) -> None:
        """Record steps anew before they are run again."""
        self._captured.clear()

    def capture(self) -> None:
        """Record the greedy step now; a sampled one is recorded when it is first asked for."""
        self._captured[False] = self._capture(sampled=False)

    def _capture(self, sampled: bool) -> _Captured:
        """Record the step. It runs on idle sequences before, which leaves the caches untouched."""
        buffers = self.tokens, self.positions, self.advance
        saved = [buffer.clone() for buffer in buffers]
        self.positions.fill_(-1)
        self.advance.zero_()
        self._advance(sampled)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=own_stream(self.tokens.device)):
            results = self._advance(sampled)
        early = launch_early(graph.raw_cuda_graph())
        graph.instantiate()
        for buffer, before in zip(buffers, saved, strict=True):
            buffer.copy_(before)
        return _Captured(graph, *results, early)

    def _advance(self, sampled: bool) -> tuple[Scores, torch.Tensor]:
        scores = Scores(*self._decode())
        tokens, logprobs = choose(scores, self.positions, self._options, sampled)
        self.tokens.copy_(tokens)
        self.positions.add_(self.advance)
        return scores, logprobs


class Reading:
    """Tokens and log probabilities of a step on their way to the host, so that the next can be launched."""

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
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)
