"""Tiles of packed sequences: what attention and its gradients share.

A *row* is a pair (token, query head of the group), row = token * group + head, as in attention.py: all heads that read
a key read it in the same program, and with a window a tile sees few keys.

A token sees the keys from `first_seen` to itself. Both ends grow with the token, also over the ends of sequences. So
what a tile of rows sees is one range of keys, and what sees a tile of keys is one range of rows. A part of either range
needs no masks, because there every row sees every key: `Span` has where it is. The tiles before and behind it are one
loop, and those of the part are another. Tiles outside of the range are not read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from gptoss_export.kernels.launch_config import ConfigSpace, shape_of

from .attention_config import padded

SEARCHED = tl.constexpr(1024)  # tokens at a time, where the last query that sees a key is searched


class Packed(NamedTuple):
    """Launch config of a kernel: rows of a tile of queries, keys of a tile, warps, stages of the pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


_OPTIONS = {"rows": (32, 64, 128), "keys": (32, 64, 128), "warps": (4, 8), "stages": (1, 2, 3)}


def packed_space(
    name: str, query: torch.Tensor, key: torch.Tensor, window: int, default: dict[str, Packed]
) -> ConfigSpace:
    """The launch configs of kernels for query [T, Hq, D] and key [T, Hkv, D]. `default` is for dtypes that tensor
    cores multiply."""
    (tokens, heads, head_dim), kv_heads = query.shape, key.size(1)
    if query.dtype == torch.float32:  # no tensor cores: products run on FMA units and take operands from registers
        default = dict.fromkeys(default, Packed(rows=32, keys=32, warps=4, stages=1))
    elif padded(head_dim) > 64:  # more of each row is in registers and in shared memory
        default = dict.fromkeys(default, Packed(rows=64, keys=32, warps=4, stages=1))
    return ConfigSpace(
        name=name,
        shape=shape_of(query.dtype, tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window),
        scaled=("tokens",),
        default=default,
        options=dict.fromkeys(default, _OPTIONS),
    )


@triton.jit
def first_seen(positions, token, TOKENS: tl.constexpr, WINDOW: tl.constexpr):
    """The first key that each of the tokens [R] sees. TOKENS for one that there is not: it sees none."""
    inside = token < TOKENS
    first = token - tl.load(positions + token, mask=inside, other=0).to(tl.int32)
    if WINDOW:
        first = tl.maximum(first, token - WINDOW + 1)
    return tl.where(inside, first, TOKENS)


@triton.jit
def start_of(number, first, front, clear, STEP: tl.constexpr, MASKED: tl.constexpr):
    """Where tile `number` of a loop starts, of tiles of STEP from `first` on: `front` with masks, `clear` without, and
    the rest with masks."""
    start = first + number * STEP
    if MASKED:
        start += tl.where(number >= front, clear, 0) * STEP
    else:
        start += front * STEP
    return start


@triton.jit
def keys_of_rows(token, low, TOKENS: tl.constexpr, KEYS: tl.constexpr):
    """The tiles of KEYS keys that rows of `token` [R] see, whose first key is `low` [R]: the first key of all, tiles
    with masks before those without, tiles without, all tiles with masks."""
    inside = token < TOKENS
    last = tl.max(tl.where(inside, token, 0), 0)
    first = tl.min(low, 0)
    front = tl.cdiv(tl.max(tl.where(inside, low, 0), 0) - first, KEYS)
    clear = tl.maximum(tl.min(token, 0) + 1 - first - front * KEYS, 0) // KEYS
    masked = front + tl.cdiv(tl.maximum(last + 1 - first - (front + clear) * KEYS, 0), KEYS)
    return first, front, clear, masked


@triton.jit
def rows_of_keys(
    positions,
    begin,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The tiles of ROWS rows that see some of the KEYS keys from `begin` on: the first row, tiles with masks before
    those without, tiles without, all tiles with masks."""
    last = tl.minimum(begin + KEYS, TOKENS) - 1
    if WINDOW:
        stop = tl.minimum(last + WINDOW, TOKENS)
    else:
        stop = TOKENS
    some = begin  # where the queries end that see some of the keys
    every = begin  # where those end that see the first one
    for start in range(begin, stop, SEARCHED):
        token = start + tl.arange(0, SEARCHED)
        low = first_seen(positions, token, TOKENS, WINDOW)
        some += tl.sum((low <= last).to(tl.int32), 0)
        every += tl.sum((low <= begin).to(tl.int32), 0)
    first = begin * GROUP
    front = tl.cdiv((last - begin) * GROUP, ROWS)
    clear = tl.maximum(every * GROUP - first - front * ROWS, 0) // ROWS
    masked = front + tl.cdiv(tl.maximum(some * GROUP - first - (front + clear) * ROWS, 0), ROWS)
    return first, front, clear, masked
