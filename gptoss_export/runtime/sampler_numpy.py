"""Chooses the next token on the host, in numpy. The same logits, seed and position give the same token as in
`model.choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..model.sampling_state import (
    LOWEST_TEMPERATURE,
    MIX_1,
    MIX_2,
    POSITION_FACTOR,
    SEED_FACTOR,
    TOKEN_FACTOR,
)
from .sampling_params import SamplingParams

_SEED, _POSITION, _TOKEN = np.uint64(SEED_FACTOR), np.uint64(POSITION_FACTOR), np.uint64(TOKEN_FACTOR)
_MIX1, _MIX2 = np.uint64(MIX_1), np.uint64(MIX_2)


def choose(
    logits: np.ndarray, positions: Sequence[int], params: Mapping[int, SamplingParams]
) -> tuple[np.ndarray, np.ndarray]:
    """Choose one token a row of logits [B, V] float32; also its log probability at temperature 1: [B] int64, [B]
    float32.

    positions [B]: of the tokens before. params: by row; other rows take the most likely token.
    """
    tokens = logits.argmax(axis=-1)
    for row, param in params.items():
        if np.float32(param.temperature) > 0:
            tokens[row] = _sample(logits[row], positions[row], param)
    return tokens, logprob(logits, tokens)


def logprob(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Natural log of the probability, at temperature 1, of tokens [B] by logits [B, V]; [B] float32."""
    top = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return np.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - total


def most_likely(logits: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """The most likely tokens of each row of logits [B, V], with their log probabilities."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    columns = [logprob(logits, ids[:, at]) for at in range(ids.shape[1])]
    return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), np.stack(columns, axis=1).tolist(), strict=True)]


def _sample(logits: np.ndarray, position: int, param: SamplingParams) -> int:
    with np.errstate(over="ignore"):  # a difference beyond float32 has no probability
        # The largest is subtracted first: a quotient of its own could be infinite at a low temperature.
        scaled = (logits - logits.max()) / np.float32(max(param.temperature, LOWEST_TEMPERATURE))
    kept = np.ones(len(logits), bool)
    if param.min_p > 0:  # `scaled` is the logarithm of each probability over the largest
        kept = scaled >= np.log(np.float32(param.min_p))
    if param.limits:
        order = np.argsort(-logits, kind="stable")
        power = np.exp(scaled[order])
        probability = power / power.sum()
        before = np.cumsum(probability) - probability
        inside = np.arange(len(order)) < (param.top_k or len(order))
        if param.top_p < 1:  # sums of 200,000 small numbers reach 1 early
            inside &= before < np.float32(param.top_p)
        inside[0] = True
        kept[order[~inside]] = False
    return int(np.where(kept, scaled + gumbel(param.seed, position, np.arange(len(logits))), -np.inf).argmax())


def gumbel(seed: int, position: int, token: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise [n] float32 of token ids [n], by a hash of all three."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        bits = np.array(seed % 2**64, np.uint64) * _SEED + np.array(position % 2**64, np.uint64) * _POSITION
        bits = bits + token.astype(np.uint64) * _TOKEN
        bits = (bits ^ (bits >> np.uint64(30))) * _MIX1
        bits = (bits ^ (bits >> np.uint64(27))) * _MIX2
    bits = bits ^ (bits >> np.uint64(31))
    # 23 bits and a half: exact in float32 and never 0 or 1.
    uniform = ((bits >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    return -np.log(-np.log(uniform))
