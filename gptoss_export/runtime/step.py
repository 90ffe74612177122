"""The decode step: one program call, the choice of the next token and the advance to it, on the device.

On CUDA the step is captured once into a CUDA graph, so that it costs the host one launch. Tokens and
positions live in buffers that the step itself rewrites: its own choice is the next step's input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .sampler import SamplingBuffers, greedy, logprob, sample


class DecodeStep:
    """tokens, positions [B] int64 in and out (position -1: idle); after `run`, logits [B, V] and logprobs [B]."""

    def __init__(
        self,
        decode: Callable[[], torch.Tensor],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        options: SamplingBuffers,
    ) -> None:
        self.tokens, self.positions = tokens, positions
        self._decode, self._options = decode, options
        self._captured: dict[bool, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self.logits: torch.Tensor | None = None
        self.logprobs: torch.Tensor | None = None

    def run(self, sampled: bool) -> None:
        """Advance every active sequence by one token; `sampled` False: all of them take the most likely."""
        if self.tokens.device.type != "cuda":
            self.logits, self.logprobs = self._advance(sampled)
            return
        if sampled not in self._captured:
            self.capture(sampled)
        graph, self.logits, self.logprobs = self._captured[sampled]
        graph.replay()

    def capture(self, sampled: bool) -> None:
        """Record the step. It runs a few times on idle sequences, which leaves the caches untouched."""
        saved = self.tokens.clone(), self.positions.clone()
        self.positions.fill_(-1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._advance(sampled)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._advance(sampled)
        self._captured[sampled] = (graph, *results)
        self.tokens.copy_(saved[0])
        self.positions.copy_(saved[1])

    def _advance(self, sampled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._decode()
        chosen = sample(logits, self.positions, self._options) if sampled else greedy(logits)
        logprobs = logprob(logits, chosen)
        self.tokens.copy_(chosen)
        self.positions.add_((self.positions >= 0).long())
        return logits, logprobs
