"""gptoss_triton::attention_sublayer: `gptoss::attention_sublayer` for NVIDIA GPUs, for up to MOST_TOKENS tokens.

The contract is in gptoss_export/model/ops/attention_sublayer.py. More tokens (a chunk) are computed by the op's
reference: its products are cuBLAS's, its attention is gptoss_triton::sink_attention.

For one token the op is three or four kernels. Each step that is not a product is part of the product that it belongs
to:

    _qkv_pdl       norm, product, bias, RoPE, cache write. A program has PAIRS pairs of rows of one head, d and
                   d + D / 2, which RoPE rotates against each other.
    _attend_next_pdl (or _attend_pdl), _combine_pdl   see attention.py
    _project_pdl   product, bias, sum over the ranks that share the model, residual

More tokens are a batch: attention_batch.py has the kernels of its products.

Limits: those of attention.py. head_dim is even.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments
from gptoss_export.model.places import Box

from .arch import has_dependent_launch
from .attention import AttentionInputs, attend
from .attention_batch import project_batch, query_of_batch
from .attention_config import Attend, attention_space
from .dense_tiles import DENSE_OPTIONS, MOST_TOKENS, DenseTile, dense_default
from .dependent_launch import let_next_start, wait_for_previous, wait_then_let_next_start
from .online_softmax import cell
from .rank_cells import Shared, fits, sum_over_ranks
from .rows import ROW_OPTIONS, Rows, dot_rows, dot_rows_of_norm, load_rows

QKV = Rows(rows=4, length=1024, warps=4)
PROJECT = Rows(rows=2, length=256, warps=1)


@triton.jit
def _qkv_pdl(
    x,
    norm_weight,
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
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    EPS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The results of PAIRS pairs of rows of one head, d and d + D / 2, which RoPE rotates against each other."""
    HALF: tl.constexpr = HEAD_DIM // 2
    parts: tl.constexpr = HALF // PAIRS
    head = tl.program_id(0) // parts
    first = tl.program_id(0) % parts * PAIRS
    r = tl.arange(0, 2 * PAIRS)
    line = head * HEAD_DIM + r // PAIRS * HALF + first + r % PAIRS
    pieces = load_rows(weight, line, HIDDEN, BLOCK)
    added = tl.load(bias + line).to(tl.float32)
    zero = wait_then_let_next_start(EARLY)
    x += zero
    cos += zero
    sin += zero
    slots += zero
    positions += zero
    d = first + tl.arange(0, PAIRS)
    # Looked up before the product: the loads wait together. Behind it they take 0.6 us more.
    position = tl.load(positions)
    at = tl.maximum(position, 0)
    page = tl.load(pages + tl.load(slots) * PAGES + at // PAGE)
    row = cell(tl.where(position >= 0, page, 0), at, PAGE, KV_HEADS, HEAD_DIM)
    y = dot_rows_of_norm(pieces, x, norm_weight, HIDDEN, BLOCK, EPS) + added
    low, high = tl.split(tl.trans(y.reshape(2, PAIRS)))
    if head < HEADS + KV_HEADS:
        c = tl.load(cos + d)
        s = tl.load(sin + d)
        turned = low * c - high * s
        high = high * c + low * s
        low = turned
    if head < HEADS:
        out = query + head * HEAD_DIM
        tl.store(out + d, low.to(query.dtype.element_ty))
        tl.store(out + HALF + d, high.to(query.dtype.element_ty))
    elif head < HEADS + KV_HEADS:
        out = k_cache + row + (head - HEADS) * PAGE * HEAD_DIM
        tl.store(out + d, low.to(k_cache.dtype.element_ty))
        tl.store(out + HALF + d, high.to(k_cache.dtype.element_ty))
    else:
        out = v_cache + row + (head - HEADS - KV_HEADS) * PAGE * HEAD_DIM
        tl.store(out + d, low.to(v_cache.dtype.element_ty))
        tl.store(out + HALF + d, high.to(v_cache.dtype.element_ty))


@triton.jit
def _project_pdl(
    x,
    weight,
    bias,
    residual,
    places,
    out,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    BOX: tl.constexpr,
    CLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """R of the HIDDEN results: x [WIDTH] times the rows + bias, float32, summed over the ranks, plus the residual."""
    row = (tl.program_id(0) + let_next_start(EARLY)) * R + tl.arange(0, R)
    safe = tl.minimum(row, HIDDEN - 1)
    pieces = load_rows(weight, safe, WIDTH, BLOCK)
    added = tl.load(bias + safe).to(tl.float32)
    zero = wait_for_previous(EARLY)
    x += zero
    residual += zero
    before = tl.load(residual + safe)  # read before the product: the loads wait together
    y = dot_rows(pieces, x, WIDTH, BLOCK)
    if RANKS > 1:
        y = before + sum_over_ranks(y + added, row, row < HIDDEN, places, BOX, zero, RANKS, CLOCK)
    else:
        y = before + y + added
    tl.store(out + row, y, mask=row < HIDDEN)


@triton_op("gptoss_triton::attention_sublayer", mutates_args={"k_cache", "v_cache"})
def attention_sublayer(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    o_weight: torch.Tensor,
    o_bias: torch.Tensor,
    sinks: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    eps: float,
    places: torch.Tensor | None,
    ranks: int,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::attention_sublayer`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    x, positions, pages = x.contiguous(), positions.contiguous(), pages.contiguous()
    cos, sin, heads, batch = cos.contiguous(), sin.contiguous(), sinks.size(0), x.size(0) > 1
    kind = DenseTile if batch else Rows
    qkv, inner, project = unflatten(config, kind, Attend, kind)
    make_query = query_of_batch if batch else _query_of_one
    query = make_query(
        x, norm_weight, qkv_weight, qkv_bias, k_cache, v_cache, pages, cos, sin, slots, positions, heads, eps, qkv, arch
    )
    inputs = AttentionInputs(
        query=query,
        k_cache=k_cache,
        v_cache=v_cache,
        pages=pages,
        sinks=sinks,
        slots=slots,
        positions=positions,
        window=window,
        scale=scale,
    )
    attended = attend(inputs, inner, arch, after_its_query=True)
    shared = Shared(places, ranks, Box.ATTENTION)
    return (project_batch if batch else _project_one)(attended, o_weight, o_bias, x, shared, project, arch)


def _query_of_one(
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
    rows: Rows,
    arch: str,
) -> torch.Tensor:
    """As `query_of_batch`, for one token."""
    hidden, (_, kv_heads, page, head_dim) = x.size(1), k_cache.shape
    pairs = rows.rows // 2
    query = x.new_empty((*positions.shape, heads, head_dim), dtype=qkv_weight.dtype)
    wrap_triton(_qkv_pdl)[((heads + 2 * kv_heads) * (head_dim // 2) // pairs,)](
        x,
        norm_weight,
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
        HIDDEN=hidden,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE=page,
        PAGES=pages.size(1),
        EPS=eps,
        PAIRS=pairs,
        BLOCK=rows.length,
        EARLY=has_dependent_launch(arch),
        num_warps=rows.warps,
    )
    return query


def _project_one(
    attended: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    shared: Shared,
    rows: Rows,
    arch: str,
) -> torch.Tensor:
    """As `project_batch`, for one token."""
    hidden, out = x.size(1), torch.empty_like(x)
    wrap_triton(_project_pdl)[(triton.cdiv(hidden, rows.rows),)](
        attended,
        weight,
        bias,
        x,
        x if shared.places is None else shared.places,
        out,
        WIDTH=weight.size(1),
        HIDDEN=hidden,
        R=rows.rows,
        BLOCK=rows.length,
        EARLY=has_dependent_launch(arch),
        num_warps=rows.warps,
        **shared.constants(arch),
    )
    return out


# Of up to so many tokens, those of qkv and of the projection. Fewer rows are more programs, and more traffic of tokens.
_TILES = (
    (32, DenseTile(rows=32, length=128, warps=4, stages=4), DenseTile(rows=32, length=256, warps=4, stages=4)),
    (64, DenseTile(rows=64, length=128, warps=4, stages=5), DenseTile(rows=64, length=128, warps=4, stages=5)),
    (MOST_TOKENS, *2 * (DenseTile(rows=64, length=128, warps=4, stages=4),)),
)


def covers(arguments: Arguments) -> bool:
    """Whether x [T, H] has few enough tokens. For more, the reference calls the smaller ops and matrix products."""
    return arguments["x"].size(0) <= MOST_TOKENS and fits(arguments)


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call: those of attention, and of the two products around it."""
    k_cache, (tokens, hidden), heads = arguments["k_cache"], arguments["x"].shape, arguments["sinks"].size(0)
    dtype = arguments["qkv_weight"].dtype
    inner = attention_space(arguments["positions"], heads, k_cache, arguments["pages"], arguments["window"], dtype)
    half, width = k_cache.size(3) // 2, arguments["o_weight"].size(1)
    row_counts = [2 * pairs for pairs in (32, 16, 8, 4, 2, 1) if half % pairs == 0]  # of a program: they divide a head
    if tokens == 1:
        qkv, project, options = QKV.for_rows_of(hidden), PROJECT.for_rows_of(width), ROW_OPTIONS
        row_counts = [rows for rows in row_counts if rows <= 8]
    else:
        tiles = next(tiles for most, *tiles in _TILES if tokens <= most)
        qkv, project = (dense_default(tile, tokens, dtype, arch) for tile in tiles)
        options = DENSE_OPTIONS
    # Values that may not be finite take registers, which a tile of 128 rows by 4 warps has none left of.
    attend_config = inner.default["attend"]
    if attend_config.rows > 64:
        attend_config = attend_config._replace(rows=64, warps=4)
    qkv = qkv._replace(rows=next(rows for rows in row_counts if rows <= qkv.rows))
    return ConfigSpace(
        name="attention_step" if tokens == 1 else "attention_batch",
        shape={**inner.shape, "hidden": hidden},
        scaled=inner.scaled,
        default={"qkv": qkv, "attend": attend_config, "project": project},
        options={"qkv": {**options, "rows": row_counts}, **inner.options, "project": options},
    )


KERNEL = Kernel(attention_sublayer, config_space, covers)
