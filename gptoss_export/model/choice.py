"""Chooses the next token, in torch. Pure functions with static shapes but for the number of rows, made to be compiled.

Sampling uses the Gumbel-max trick: the token with the largest log p + g, where g = -log(-log(u)), is a sample from p.
The uniform numbers u are a hash of (seed, position, token id) and no generator's state. So a sequence draws the same
tokens alone or in a batch, on a CPU or a GPU. `runtime.sampler_numpy` draws the same tokens without torch.

Tensors of all slots [S, ...] are those of `sampling_state`. A row reads those of its slot.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .sampling_state import (
    DRAWING,
    IN_PROMPT,
    LOWEST_TEMPERATURE,
    MASK_WORD,
    MIX_1,
    MIX_2,
    MOST_TOP_LOGPROBS,
    POSITION_FACTOR,
    SEED_FACTOR,
    TOKEN_FACTOR,
)

_MIX1, _MIX2 = (factor - 2**64 for factor in (MIX_1, MIX_2))  # torch's 64-bit integers are signed
_PART = 512  # numbers of a row that are summed or searched at once


class Drawing(NamedTuple):
    """What a drawn token depends on, [S] each: temperature, top_p and min_p float32, top_k and seed int64."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    seed: torch.Tensor
    min_p: torch.Tensor

    def of(self, slots: torch.Tensor) -> Drawing:
        """Those of the slots [R] int64 of some rows, [R, 1] each."""
        return Drawing(*(values[slots][:, None] for values in self))


class Adjusting(NamedTuple):
    """What an adjusted choice depends on as well (`sampling_state.adjusting`)."""

    repetition_penalty: torch.Tensor
    presence_penalty: torch.Tensor
    frequency_penalty: torch.Tensor
    counts: torch.Tensor
    bias_ids: torch.Tensor
    biases: torch.Tensor
    allowed: torch.Tensor
    stops: torch.Tensor
    until: torch.Tensor


def choose_drawn(
    logits: torch.Tensor, log_total: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, *state: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Draw one token a row, from all tokens that min_p keeps: top_k and top_p are not read.

    logits     [R, V] float32
    log_total  [R] float32, log sum exp of the logits
    positions  [R] int64, of the tokens before; -1: no sequence
    slots      [R] int64
    state      the tensors of DRAWING

    Returns the tokens [R] int64 and their log probabilities [R] float32, at temperature 1.
    """
    tokens = sample(logits, positions, Drawing(*state).of(slots))
    return tokens, logprob(logits, log_total, tokens)


def choose_limited(
    logits: torch.Tensor, log_total: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, *state: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """As `choose_drawn`, from the tokens that top_k and top_p keep too."""
    tokens = sample_limited(logits, positions, Drawing(*state).of(slots))
    return tokens, logprob(logits, log_total, tokens)


def choose_adjusted(
    logits: torch.Tensor, log_total: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, *state: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Draw one token a row from changed logits, and count it.

    state  the tensors of DRAWING, then those of `adjusting`; the counts are written in place

    Other arguments are those of `choose_drawn`. Returns its results, of the logits as they were, and the T most likely
    tokens: ids [R, T] int64 and log probabilities [R, T] float32.
    """
    drawing, adjusting = Drawing(*state[: len(DRAWING)]), Adjusting(*state[len(DRAWING) :])
    tokens = sample_limited(adjust(logits, positions, slots, adjusting), positions, drawing.of(slots))
    count(tokens, positions, slots, adjusting.counts)
    best, top = logits.topk(min(MOST_TOP_LOGPROBS, logits.size(-1)), dim=-1)
    return tokens, logprob(logits, log_total, tokens), top, best - log_total[:, None]


def logprob(logits: torch.Tensor, log_total: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Natural log of the probability, at temperature 1, of tokens [R] by logits [R, V]; [R] float32."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - log_total


def sample(logits: torch.Tensor, positions: torch.Tensor, params: Drawing) -> torch.Tensor:
    """Draw one token a row, from all that min_p keeps: logits [R, V] float32, positions [R] int64 of the tokens before,
    parameters [R, 1]; to [R] int64.

    Rows with temperature 0 take the most likely token. Of equal sums of logit and noise the lowest id is taken, and in
    `sample_limited` the most likely token.
    """
    best = _parts(logits, float("-inf")).amax(dim=2).amax(dim=1, keepdim=True)
    token = torch.arange(logits.size(-1), device=logits.device)
    scaled = _scaled(logits, best, params)
    return _largest(_noisy(scaled, _near(scaled, params), token, positions, params)).squeeze(-1)


def sample_limited(logits: torch.Tensor, positions: torch.Tensor, params: Drawing) -> torch.Tensor:
    """As `sample`, from the tokens that top_k and top_p keep too. For these the logits are sorted, which takes most of
    the time of a choice."""
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    scaled = _scaled(ordered, ordered[:, :1], params)
    rank = torch.arange(logits.size(-1), device=logits.device)
    probability = scaled.softmax(dim=-1)
    before = _sums(probability) - probability
    limit = torch.where(params.top_k > 0, params.top_k, logits.size(-1))
    # Sums of 200,000 small numbers reach 1 early: with top_p 1 nothing is dropped by them.
    likely = (before < params.top_p) | (params.top_p >= 1)
    kept = (rank == 0) | ((rank < limit) & likely & _near(scaled, params))
    best = _largest(_noisy(scaled, kept, ids, positions, params))
    return ids.gather(-1, best).squeeze(-1)


def _scaled(logits: torch.Tensor, best: torch.Tensor, params: Drawing) -> torch.Tensor:
    """The logarithm [R, V] of each probability over the largest, whose logits are best [R, 1]."""
    # The largest is subtracted first: a quotient of its own could be infinite at a low temperature.
    return (logits - best) / torch.where(params.temperature > 0, params.temperature.clamp(min=LOWEST_TEMPERATURE), 1.0)


def _near(scaled: torch.Tensor, params: Drawing) -> torch.Tensor:
    """The tokens [R, V] that min_p keeps."""
    return (scaled >= params.min_p.log()) | (params.min_p <= 0)


def _noisy(
    scaled: torch.Tensor, kept: torch.Tensor, token: torch.Tensor, positions: torch.Tensor, params: Drawing
) -> torch.Tensor:
    """What the drawn token has the largest of: scaled [R, V] and the noise of the ids `token`, where these are kept."""
    noise = torch.where(params.temperature > 0, gumbel(params.seed, positions[:, None], token), 0.0)
    return torch.where(kept, scaled + noise, float("-inf"))


def gumbel(seed: torch.Tensor, position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32, from three int64 tensors that broadcast."""
    # Products wrap around. Inductor would compute that of an index as an index, whose overflow is undefined in C++: gcc
    # made wrong code of such loops. The mask changes no id, and makes it a number.
    token = token & 0x7FFFFFFF
    bits = seed * SEED_FACTOR + position * POSITION_FACTOR + token * TOKEN_FACTOR
    bits = (bits ^ _shift(bits, 30)) * _MIX1
    bits = (bits ^ _shift(bits, 27)) * _MIX2
    bits = bits ^ _shift(bits, 31)
    # 23 bits and a half: exact in float32 and never 0 or 1.
    uniform = (_shift(bits, 41).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def adjust(logits: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, by: Adjusting) -> torch.Tensor:
    """Logits [R, V] float32 of some rows as the choice takes them. positions [R]: of the tokens before."""
    penalties = by.repetition_penalty, by.presence_penalty, by.frequency_penalty
    repetition, presence, frequency = (values[slots][:, None] for values in penalties)
    counts = by.counts[slots]
    answered = counts & (IN_PROMPT - 1)
    found = torch.where(counts > 0, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    found = found - presence * (answered > 0) - frequency * answered
    found = found.scatter_add(1, by.bias_ids[slots], by.biases[slots])
    allowed = _bits(by.allowed, slots, logits.size(1))
    early = _bits(by.stops, slots, logits.size(1)) & (positions < by.until[slots])[:, None]
    wanted = allowed & ~early
    # Where only stop tokens are allowed, they are chosen early.
    wanted = torch.where(wanted.any(dim=1, keepdim=True), wanted, allowed)
    return found.masked_fill(~wanted, float("-inf"))


def count(tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, counts: torch.Tensor) -> None:
    """Add the tokens [R] that were chosen to counts [S, V], in place. Rows whose position is -1 have no sequence."""
    counts.index_put_((slots, tokens), (positions >= 0).int(), accumulate=True)


def _sums(values: torch.Tensor) -> torch.Tensor:
    """Running sums of rows [R, V], in an order that depends on nothing but V.

    Blocks of a GPU would share the sums of a whole long row, and add in the order in which they finish.
    """
    parts = _parts(values, 0.0).cumsum(dim=2)
    number = torch.arange(parts.size(1), device=values.device)
    before = torch.where(number < number[:, None], parts[:, None, :, -1], 0.0).sum(dim=2)
    return (parts + before[:, :, None]).flatten(1)[:, : values.size(1)]


def _largest(values: torch.Tensor) -> torch.Tensor:
    """The index [R, 1] of the largest of each row [R, V], the lowest of equal ones. One block of a GPU would search a
    whole row."""
    best, at = _parts(values, float("-inf")).max(dim=2)
    part = best.argmax(dim=1, keepdim=True)
    return part * _PART + at.gather(1, part)


def _parts(values: torch.Tensor, fill: float) -> torch.Tensor:
    """Rows [R, V] in short parts [R, n, _PART], the last one filled up."""
    return torch.nn.functional.pad(values, (0, -values.size(1) % _PART), value=fill).unflatten(1, (-1, _PART))


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift right of a signed 64-bit integer."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _bits(words: torch.Tensor, slots: torch.Tensor, count: int) -> torch.Tensor:
    """The first bits [R, count] bool of the words [S, words] int32 of some slots."""
    shift = torch.arange(MASK_WORD, dtype=torch.int32, device=words.device)
    bits = (words[slots][:, :, None] >> shift) & 1
    return bits.flatten(1)[:, :count].bool()
