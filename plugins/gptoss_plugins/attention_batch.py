"""The products around attention for several tokens: norm, q, k and v with RoPE and cache write, output and residual.

attention_sublayer.py says what the kernels of the sublayer are. These two do for a batch what `_qkv_pdl` and
`_project_pdl` do for one token, on tensor cores (dense_tiles.py).

Limits: head_dim is even. The rows of a program of `_qkv_batch_pdl` are halves of one head, so they divide it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .arch import has_dependent_launch
from .dense_tiles import DenseTile, columns_for, dense_product, dot_precision, normalise
from .dependent_launch import let_next_start, wait_for_previous, wait_then_let_next_start
from .online_softmax import cell
from .rank_cells import Shared, sum_over_ranks


@triton.jit
def _qkv_batch_pdl(
    x,
    weight,
    bias,
    cos,
    sin,
    slots,
    positions,
    query,
    k_cache,
    v_cache,
    pages,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LENGTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """PAIRS pairs of rows of one head, d and d + D / 2, for every token; a sequence has LENGTH tokens."""
    HALF: tl.constexpr = HEAD_DIM // 2
    parts: tl.constexpr = HALF // PAIRS
    head = tl.program_id(0) // parts
    first = tl.program_id(0) % parts * PAIRS
    r = tl.arange(0, 2 * PAIRS)
    line = head * HEAD_DIM + r // PAIRS * HALF + first + r % PAIRS
    zero = wait_then_let_next_start(EARLY)
    x += zero
    cos += zero
    sin += zero
    slots += zero
    positions += zero
    added = tl.load(bias + line).to(tl.float32)
    y = dense_product(x, weight, line, TOKENS, COLUMNS, HIDDEN, BLOCK, PRECISION) + added[:, None]
    low, high = tl.split(y.reshape(2, PAIRS, COLUMNS).permute(1, 2, 0))
    token = tl.arange(0, COLUMNS)[None, :]
    there = token < TOKENS
    d = first + tl.arange(0, PAIRS)[:, None]
    if head < HEADS + KV_HEADS:
        c = tl.load(cos + token * HALF + d, mask=there, other=0.0)
        s = tl.load(sin + token * HALF + d, mask=there, other=0.0)
        turned = low * c - high * s
        high = high * c + low * s
        low = turned
    if head < HEADS:
        out = query + (token * HEADS + head) * HEAD_DIM + d
        tl.store(out, low.to(query.dtype.element_ty), mask=there)
        tl.store(out + HALF, high.to(query.dtype.element_ty), mask=there)
    else:
        position = tl.load(positions + token, mask=there, other=-1)
        at = tl.maximum(position, 0)
        slot = tl.load(slots + token // LENGTH, mask=there, other=0)
        page = tl.load(pages + slot * PAGES + at // PAGE, mask=there, other=0)
        row = cell(tl.where(position >= 0, page, 0), at, PAGE, KV_HEADS, HEAD_DIM) + d
        if head < HEADS + KV_HEADS:
            out = k_cache + row + (head - HEADS) * PAGE * HEAD_DIM
        else:
            out = v_cache + row + (head - HEADS - KV_HEADS) * PAGE * HEAD_DIM
        tl.store(out, low.to(k_cache.dtype.element_ty), mask=there)
        tl.store(out + HALF, high.to(k_cache.dtype.element_ty), mask=there)


@triton.jit
def _project_batch_pdl(
    x,
    weight,
    bias,
    residual,
    places,
    out,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    RANKS: tl.constexpr,
    BOX: tl.constexpr,
    CLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """R of the HIDDEN results of every token: x [T, WIDTH] times the rows + bias, float32, summed over the ranks, plus
    the residual."""
    row = (tl.program_id(0) + let_next_start(EARLY)) * R + tl.arange(0, R)
    safe = tl.minimum(row, HIDDEN - 1)
    zero = wait_for_previous(EARLY)
    x += zero
    residual += zero
    out += zero
    added = tl.load(bias + safe).to(tl.float32)
    y = dense_product(x, weight, safe, TOKENS, COLUMNS, WIDTH, BLOCK, PRECISION) + added[:, None]
    token = tl.arange(0, COLUMNS)[None, :]
    there = (token < TOKENS) & (row < HIDDEN)[:, None]
    cells = token * HIDDEN + row[:, None]
    if RANKS > 1:
        y = sum_over_ranks(y, cells, there, places, BOX, zero, RANKS, CLOCK)
    y += tl.load(residual + cells, mask=there, other=0.0)
    tl.store(out + cells, y, mask=there)


def query_of_batch(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    eps: float,
    tile: DenseTile,
    arch: str,
) -> torch.Tensor:
    """The query [N, L, Hq, D] of gptoss::attention_sublayer; keys and values are written to the cache."""
    (tokens, hidden), (_, kv_heads, page, head_dim) = x.shape, k_cache.shape
    query = x.new_empty((*positions.shape, heads, head_dim), dtype=qkv_weight.dtype)
    pairs = tile.rows // 2
    wrap_triton(_qkv_batch_pdl)[((heads + 2 * kv_heads) * (head_dim // 2) // pairs,)](
        normalise(x, norm_weight, eps, arch),
        qkv_weight,
        qkv_bias,
        cos,
        sin,
        slots,
        positions,
        query,
        k_cache,
        v_cache,
        pages,
        TOKENS=tokens,
        COLUMNS=columns_for(tokens),
        LENGTH=positions.size(1),
        HIDDEN=hidden,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE=page,
        PAGES=pages.size(1),
        PAIRS=pairs,
        BLOCK=tile.length,
        PRECISION=dot_precision(qkv_weight.dtype),
        EARLY=has_dependent_launch(arch),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return query


def project_batch(
    attended: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    shared: Shared,
    tile: DenseTile,
    arch: str,
) -> torch.Tensor:
    """[T, H] float32: attended [.., Hq D] @ weight.T + bias, summed over the ranks, plus x [T, H]."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    wrap_triton(_project_batch_pdl)[(triton.cdiv(hidden, tile.rows),)](
        attended,
        weight,
        bias,
        x,
        x if shared.places is None else shared.places,
        out,
        TOKENS=tokens,
        COLUMNS=columns_for(tokens),
        WIDTH=weight.size(1),
        HIDDEN=hidden,
        R=tile.rows,
        BLOCK=tile.length,
        PRECISION=dot_precision(weight.dtype),
        EARLY=has_dependent_launch(arch),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **shared.constants(arch),
    )
    return out
