"""Attention over a range of keys with the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao 2022).

It is computed in float32 with powers of two. A row has three numbers: its largest score (peak), the sum of its
weights 2^(score - peak) (total), and the sum of the values times their weights, which is not normalised.

How NaN is avoided: a masked score is -inf, but a peak starts at the finite -1e30, so the difference of the two is
-inf and never NaN. A row that saw no key has total 0 and sum 0, and its denominator is the sink alone. Rows of K and V
that no row of the tile sees are loaded as 0, since the cache may hold any number there, NaN included.

A value that is not finite must not reach rows that do not see its key: its weight is 0 there, and 0 times NaN is NaN.
With FINITE the caller promises that there is none (gptoss::kv_write writes none). Otherwise such values are replaced
by 0, and their scores by NaN for the rows that see them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-1e30)  # the peak of a row that has seen no key


@triton.jit
def cell(page, position, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Where the row of a position is, from that head's first row in page 0: an element of a cache [P, Hkv, PAGE, D]."""
    return page.to(tl.int64) * (KV_HEADS * PAGE * HEAD_DIM) + position % PAGE * HEAD_DIM


@triton.jit
def scan(
    q,
    q_at,
    peak,
    total,
    acc,
    keys,
    values,
    pages,
    begin,
    end,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    FINITE: tl.constexpr,
):
    """Online softmax of the rows `q` [BLOCK_M, DIM] over positions begin..end-1 of one slot.

    keys, values: the head's rows in page 0; pages: the slot's. Without MASKED every row sees every key, and
    end - begin is a multiple of BLOCK_N.
    """
    d = tl.arange(0, DIM)[None, :]
    for start in range(begin, end, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        if MASKED:
            page = tl.load(pages + at // PAGE, mask=at < end, other=0)
        else:
            page = tl.load(pages + at // PAGE)
        cells = cell(page, at, PAGE, KV_HEADS, HEAD_DIM)[:, None] + d
        there = d < HEAD_DIM
        if MASKED:
            there = there & (at < end)[:, None]
        k = tl.load(keys + cells, mask=there, other=0.0).to(q.dtype)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (SCALE * LOG2E)
        if MASKED:
            seen = (at[None, :] <= q_at[:, None]) & (at < end)[None, :]
            if WINDOW:
                seen = seen & (at[None, :] > q_at[:, None] - WINDOW)
            score = tl.where(seen, score, float("-inf"))
            if not FINITE:
                v = tl.load(values + cells, mask=there, other=0.0).to(q.dtype)
                finite = tl.abs(v.to(tl.float32)) < float("inf")  # False for NaN
                broken = tl.min(finite.to(tl.int32), 1) == 0
                score = tl.where(seen & broken[None, :], float("nan"), score)
                v = tl.where(finite, v, 0.0).to(q.dtype)
        top = tl.maximum(peak, tl.max(score, 1))
        weight = tl.exp2(score - top[:, None])
        shrink = tl.exp2(peak - top)
        if FINITE or not MASKED:
            v = tl.load(values + cells, mask=there, other=0.0).to(q.dtype)
        acc = tl.dot(weight.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        total = total * shrink + tl.sum(weight, 1)
        peak = top
    return peak, total, acc
