"""Chooses the next token on the device, in torch, with static shapes: the choice is part of the captured decode step.

Sampling uses the Gumbel-max trick: the token with the largest log p + g, where g = -log(-log(u)), is a sample from p.
The uniform numbers u are a hash of (seed, position, token id) and no generator's state. So a sequence draws the same
tokens alone or in a batch, on a CPU or a GPU. `sampler_numpy` draws the same tokens without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from .adjust_torch import Adjustments
from .executor import Choice
from .sampling_params import (
    LOWEST_TEMPERATURE,
    MIX_1,
    MIX_2,
    MOST_TOP_LOGPROBS,
    POSITION_FACTOR,
    SEED_FACTOR,
    TOKEN_FACTOR,
    SamplingParams,
)

_MIX1, _MIX2 = (factor - 2**64 for factor in (MIX_1, MIX_2))  # torch's 64-bit integers are signed


class SamplingRows(NamedTuple):
    """The sampling parameters of some rows, [B, 1] each: temperature, top_p and min_p float32, top_k and seed int64."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    seed: torch.Tensor
    min_p: torch.Tensor


class SamplingBuffers:
    """The sampling parameters of all slots, on the device."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._rows = SamplingRows(
            temperature=torch.zeros(slots, 1, device=device),
            top_k=torch.zeros(slots, 1, dtype=torch.int64, device=device),
            top_p=torch.ones(slots, 1, device=device),
            seed=torch.zeros(slots, 1, dtype=torch.int64, device=device),
            min_p=torch.zeros(slots, 1, device=device),
        )

    def of(self, slots: torch.Tensor) -> SamplingRows:
        """The parameters of the slots [B] int64 of some rows."""
        return SamplingRows(*(buffer[slots] for buffer in self._rows))

    def set(self, params: Mapping[int, SamplingParams]) -> None:
        """Set the parameters of some slots; the others keep theirs."""
        slots = torch.tensor(list(params), device=self._rows.seed.device)
        for name, buffer in self._rows._asdict().items():
            values = [getattr(given, name) for given in params.values()]
            buffer[slots, 0] = torch.tensor(values, dtype=buffer.dtype, device=buffer.device)


class StepOutput(NamedTuple):
    """What a program knows of the token after each row.

    logits [B, V] float32; top [B] int64, the most likely token; top_logprob [B] float32, its log probability;
    log_total [B] float32, log sum exp of the logits."""

    logits: torch.Tensor
    top: torch.Tensor
    top_logprob: torch.Tensor
    log_total: torch.Tensor

    @classmethod
    def empty(cls, rows: int, vocabulary: int, device: torch.device) -> StepOutput:
        ids = torch.zeros(rows, dtype=torch.int64, device=device)
        logprobs, totals = torch.zeros(2, rows, device=device)
        return cls(torch.zeros(rows, vocabulary, device=device), ids, logprobs, totals)

    @classmethod
    def of(cls, logits: torch.Tensor) -> StepOutput:
        """From logits [B, V] of any float dtype."""
        logits = logits.float()
        best, top = logits.max(dim=-1)
        log_total = (logits - best[:, None]).exp().sum(dim=-1).log() + best
        return cls(logits, top, best - log_total, log_total)

    def logprob(self, tokens: torch.Tensor) -> torch.Tensor:
        """Natural log of the probability, at temperature 1, of tokens [B]; [B] float32."""
        return self.logits.gather(-1, tokens[:, None]).squeeze(-1) - self.log_total


class Chosen(NamedTuple):
    """One token for each row.

    tokens     [B] int64
    logprobs   [B] float32, at temperature 1, of the logits as the model gives them
    top        [B, T] int64, the most likely tokens, where the choice was ADJUSTED
    top_logprobs  [B, T] float32, theirs
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    top: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


def choose(
    output: StepOutput,
    positions: torch.Tensor,
    slots: torch.Tensor,
    params: SamplingBuffers,
    choice: Choice,
    adjustments: Adjustments | None = None,
) -> Chosen:
    """Choose one token a row.

    positions    [B] int64, of the tokens before
    slots        [B] int64, whose parameters a row has
    adjustments  of all slots, for Choice.ADJUSTED; counts the chosen tokens

    With Choice.MOST_LIKELY the logits are not read."""
    if choice == Choice.MOST_LIKELY:
        return Chosen(output.top, output.top_logprob)
    if choice == Choice.DRAWN:
        tokens = sample(output.logits, positions, params.of(slots))
        return Chosen(tokens, output.logprob(tokens))
    assert adjustments is not None
    tokens = sample(adjustments.apply(output.logits, positions, slots), positions, params.of(slots))
    adjustments.count(tokens, positions, slots)
    most = min(MOST_TOP_LOGPROBS, output.logits.size(-1))
    best, top = output.logits.topk(most, dim=-1)
    return Chosen(tokens, output.logprob(tokens), top, best - output.log_total[:, None])


def sample(logits: torch.Tensor, positions: torch.Tensor, params: SamplingRows) -> torch.Tensor:
    """Draw one token a row: logits [B, V] float32 and positions [B] int64 of the tokens before to [B] int64.

    Rows with temperature 0 take the most likely token.
    """
    random = params.temperature > 0
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    # The largest is subtracted first: a quotient of its own could be infinite at a low temperature.
    ordered = (ordered - ordered[:, :1]) / torch.where(random, params.temperature.clamp(min=LOWEST_TEMPERATURE), 1.0)
    rank = torch.arange(logits.size(-1), device=logits.device)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    limit = torch.where(params.top_k > 0, params.top_k, logits.size(-1))
    # Sums of 200,000 small numbers reach 1 early: with top_p 1 nothing is dropped by them.
    likely = (before < params.top_p) | (params.top_p >= 1)
    # Compared as logarithms: `ordered` is that of each probability over the largest.
    near = (ordered >= params.min_p.log()) | (params.min_p <= 0)
    kept = (rank == 0) | ((rank < limit) & likely & near)
    noise = torch.where(random, gumbel(params.seed, positions[:, None], ids), 0.0)
    best = torch.where(kept, ordered + noise, float("-inf")).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, best).squeeze(-1)


def gumbel(seed: torch.Tensor, position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32, from three int64 tensors that broadcast."""
    bits = seed * SEED_FACTOR + position * POSITION_FACTOR + token * TOKEN_FACTOR
    bits = (bits ^ _shift(bits, 30)) * _MIX1
    bits = (bits ^ _shift(bits, 27)) * _MIX2
    bits = bits ^ _shift(bits, 31)
    # 23 bits and a half: exact in float32 and never 0 or 1.
    uniform = (_shift(bits, 41).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift right of a signed 64-bit integer."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
