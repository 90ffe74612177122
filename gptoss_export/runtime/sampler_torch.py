"""Choosing the next token on the device, with static shapes, so that it is part of the captured step.

Sampling is by the Gumbel-max trick: the largest of log p + g, with g = -log(-log(u)), is a sample from p.
The uniform numbers are a hash of (seed, position, token id) and not a generator's state, so a sequence
draws the same tokens alone or in a batch, on CPU or GPU, resumed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .sampling_params import Sampling

# Odd multipliers and the finalizer of SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit integers.
_SEED, _POSITION, _TOKEN = 0x1E3779B97F4A7C15, 0x3C6EF372FE94F82B, 0x5851F42D4C957F2D
_MIX1, _MIX2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class SamplingBuffers:
    """The sampling options of all slots, on the device."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.temperature = torch.zeros(slots, 1, device=device)
        self.top_k = torch.zeros(slots, 1, dtype=torch.int64, device=device)
        self.top_p = torch.ones(slots, 1, device=device)
        self.seed = torch.zeros(slots, 1, dtype=torch.int64, device=device)

    def set(self, options: Sequence[Sampling]) -> None:
        """Options of the first slots; the others keep theirs."""
        count = len(options)
        self.temperature[:count, 0] = torch.tensor([o.temperature for o in options])
        self.top_k[:count, 0] = torch.tensor([o.top_k for o in options])
        self.top_p[:count, 0] = torch.tensor([o.top_p for o in options])
        self.seed[:count, 0] = torch.tensor([o.seed for o in options])


class Scores(NamedTuple):
    """What a program says of the token after each row: logits [B, V] float32, the most likely token [B] int64 and
    its log probability [B] float32, and log sum exp of the logits [B] float32."""

    logits: torch.Tensor
    top: torch.Tensor
    top_logprob: torch.Tensor
    log_total: torch.Tensor

    @classmethod
    def empty(cls, rows: int, vocabulary: int, device: torch.device) -> Scores:
        ids = torch.zeros(rows, dtype=torch.int64, device=device)
        logprobs, totals = torch.zeros(2, rows, device=device)
        return cls(torch.zeros(rows, vocabulary, device=device), ids, logprobs, totals)

    @classmethod
    def of(cls, logits: torch.Tensor) -> Scores:
        """Of logits [B, V] of any float dtype."""
        logits = logits.float()
        best, top = logits.max(dim=-1)
        log_total = (logits - best[:, None]).exp().sum(dim=-1).log() + best
        return cls(logits, top, best - log_total, log_total)


def choose(
    scores: Scores, positions: torch.Tensor, options: SamplingBuffers, sampled: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, and its log probability at temperature 1: [B] int64, [B] float32.

    `sampled` False: every row takes the most likely token, and the logits are not read again.
    """
    if not sampled:
        return scores.top, scores.top_logprob
    tokens = sample(scores.logits, positions, options)
    return tokens, logprob(scores, tokens)


def sample(logits: torch.Tensor, positions: torch.Tensor, options: SamplingBuffers) -> torch.Tensor:
    """One token a row: logits [B, V] float32, positions [B] int64 of the tokens before, to [B] int64.

    Rows with temperature 0 take the most likely token.
    """
    random = options.temperature > 0
    scaled = logits / torch.where(random, options.temperature, 1.0)
    ordered, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.size(-1), device=logits.device)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    limit = torch.where(options.top_k > 0, options.top_k, logits.size(-1))
    # Sums of 200,000 small numbers reach 1 early: with top_p 1 nothing is dropped by them.
    likely = (before < options.top_p) | (options.top_p >= 1)
    kept = (rank == 0) | ((rank < limit) & likely)
    noise = torch.where(random, gumbel(options.seed, positions[:, None], ids), 0.0)
    best = torch.where(kept, ordered + noise, float("-inf")).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, best).squeeze(-1)


def gumbel(seed: torch.Tensor, position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32, from three int64 tensors that broadcast."""
    bits = seed * _SEED + position * _POSITION + token * _TOKEN
    bits = (bits ^ _shift(bits, 30)) * _MIX1
    bits = (bits ^ _shift(bits, 27)) * _MIX2
    bits = bits ^ _shift(bits, 31)
    # 23 bits and a half: exact in float32 and never 0 or 1.
    uniform = (_shift(bits, 41).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift right of a signed 64-bit integer."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def logprob(scores: Scores, tokens: torch.Tensor) -> torch.Tensor:
    """Natural log of the probability, at temperature 1, of tokens [B]; [B] float32."""
    return scores.logits.gather(-1, tokens[:, None]).squeeze(-1) - scores.log_total
