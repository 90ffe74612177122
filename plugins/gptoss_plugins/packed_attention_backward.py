"""gptoss_triton::packed_attention_backward: `gptoss::packed_attention_backward` for NVIDIA GPUs, in Triton.

The contract and the formulas are in gptoss_export/model/ops/packed_attention_backward.py. Three kernels compute it:

    _delta            delta of each (token, head), and the sums of dsinks over some tokens
    _key_gradients    dk and dv of a tile of keys of one KV head: a loop over the rows that see it
    _query_gradients  dq of a tile of rows of one KV head: a loop over the keys that it sees

Both loops compute the weights again from the scores and log_total. So there are seven products where one loop with
atomic additions needs five, and no sum depends on the order in which programs run: equal inputs have equal gradients.
In `_key_gradients` the scores are transposed, [keys, rows]: the weights and ds are then the left operands of the
products with g and q, and stay in registers.

packed_tiles.py says what a row is and which tiles are read. The programs with the most tiles come first. The sums of
dsinks over the tiles of tokens are added by torch.

Weights and ds are rounded to the dtype of the inputs for their products; all sums are float32.

Limits: those of packed_attention.py. The launch configs are by reasoning, and none has been measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments

from .arch import has_large_products
from .attention_config import padded
from .dense_tiles import dot_precision
from .online_softmax import LOG2E
from .packed_tiles import Packed, first_seen, keys_of_rows, packed_space, rows_of_keys, start_of

_TOKENS = 64  # of a program of `_delta`


@triton.jit
def _delta(
    grad,
    out,
    log_total,
    sinks,
    delta,
    sink_sums,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
):
    """delta [T, Hq] of BLOCK tokens of one head, and their sum of -exp(sink - log_total) delta: sink_sums [.., Hq]."""
    head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < TOKENS
    d = tl.arange(0, DIM)[None, :]
    line = token.to(tl.int64) * HEADS + head
    cells = line[:, None] * HEAD_DIM + d
    there = inside[:, None] & (d < HEAD_DIM)
    g = tl.load(grad + cells, mask=there, other=0.0).to(tl.float32)
    result = tl.load(out + cells, mask=there, other=0.0).to(tl.float32)
    found = tl.sum(g * result, 1)
    tl.store(delta + line, found, mask=inside)
    log = tl.load(log_total + line, mask=inside, other=0.0)
    share = tl.exp2((tl.load(sinks + head).to(tl.float32) - log) * LOG2E)
    tl.store(sink_sums + tl.program_id(0) * HEADS + head, -tl.sum(tl.where(inside, share * found, 0.0), 0))


@triton.jit
def _scan_rows(
    k,
    v,
    at,
    dk,
    dv,
    query,
    grad,
    log_total,
    delta,
    positions,
    first,
    front,
    clear,
    tiles,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds so many tiles of rows to dk and dv [KEYS, DIM] of keys and values `k` and `v` of the tokens `at` [KEYS].

    query, grad, log_total and delta begin at the first head of the group. dk is without the factor `scale`.
    """
    d = tl.arange(0, DIM)[None, :]
    for number in range(tiles):
        row = start_of(number, first, front, clear, ROWS, MASKED) + tl.arange(0, ROWS)
        token = row // GROUP
        line = token.to(tl.int64) * HEADS + row % GROUP
        cells = line[:, None] * HEAD_DIM + d
        inside = token < TOKENS
        there = inside[:, None] & (d < HEAD_DIM)
        q = tl.load(query + cells, mask=there, other=0.0)
        log = tl.load(log_total + line, mask=inside, other=0.0) * LOG2E
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weight = tl.exp2(score * (SCALE * LOG2E) - log[None, :])
        if MASKED:
            low = first_seen(positions, token, TOKENS, WINDOW)
            seen = (at[:, None] <= token[None, :]) & (at[:, None] >= low[None, :])
            weight = tl.where(seen, weight, 0.0)
        g = tl.load(grad + cells, mask=there, other=0.0)
        dv = tl.dot(weight.to(g.dtype), g, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        ds = weight * (dp - tl.load(delta + line, mask=inside, other=0.0)[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _key_gradients(
    query,
    key,
    value,
    grad,
    log_total,
    delta,
    positions,
    dk,
    dv,
    TOKENS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv [T, Hkv, D] of KEYS keys of one KV head."""
    kv_head, begin = tl.program_id(0), tl.program_id(1) * KEYS
    at = begin + tl.arange(0, KEYS)
    first, front, clear, masked = rows_of_keys(positions, begin, TOKENS, GROUP, WINDOW, KEYS, ROWS)
    d = tl.arange(0, DIM)[None, :]
    cells = (at.to(tl.int64) * KV_HEADS + kv_head)[:, None] * HEAD_DIM + d
    there = (at < TOKENS)[:, None] & (d < HEAD_DIM)
    k = tl.load(key + cells, mask=there, other=0.0)
    v = tl.load(value + cells, mask=there, other=0.0)
    head = kv_head * GROUP
    k_sum = tl.zeros([KEYS, DIM], tl.float32)
    v_sum = tl.zeros([KEYS, DIM], tl.float32)
    for masks in tl.static_range(2):
        k_sum, v_sum = _scan_rows(
            k,
            v,
            at,
            k_sum,
            v_sum,
            query + head * HEAD_DIM,
            grad + head * HEAD_DIM,
            log_total + head,
            delta + head,
            positions,
            first,
            front,
            clear,
            masked if masks else clear,
            TOKENS,
            KV_HEADS * GROUP,
            GROUP,
            HEAD_DIM,
            WINDOW,
            SCALE,
            ROWS,
            DIM,
            PRECISION,
            masks == 1,
        )
    tl.store(dk + cells, (k_sum * SCALE).to(dk.dtype.element_ty), mask=there)
    tl.store(dv + cells, v_sum.to(dv.dtype.element_ty), mask=there)


@triton.jit
def _scan_keys(
    q,
    g,
    log,
    shift,
    token,
    low,
    dq,
    key,
    value,
    first,
    front,
    clear,
    tiles,
    TOKENS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds so many tiles of keys to dq [R, DIM] of queries `q` of the tokens `token` [R], without the factor `scale`.

    log and shift are log_total times log2(e), and delta [R].
    """
    d = tl.arange(0, DIM)[None, :]
    for number in range(tiles):
        at = start_of(number, first, front, clear, KEYS, MASKED) + tl.arange(0, KEYS)
        cells = at.to(tl.int64)[:, None] * (KV_HEADS * HEAD_DIM) + d
        there = d < HEAD_DIM
        if MASKED:
            there = there & (at < TOKENS)[:, None]
        k = tl.load(key + cells, mask=there, other=0.0)
        v = tl.load(value + cells, mask=there, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        weight = tl.exp2(score * (SCALE * LOG2E) - log[:, None])
        if MASKED:
            seen = (at[None, :] <= token[:, None]) & (at[None, :] >= low[:, None])
            weight = tl.where(seen, weight, 0.0)
        ds = weight * (dp - shift[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _query_gradients(
    query,
    key,
    value,
    grad,
    log_total,
    delta,
    positions,
    dq,
    TOKENS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq [T, Hq, D] of ROWS rows of one KV head."""
    kv_head = tl.program_id(0)
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS + tl.arange(0, ROWS)
    token = row // GROUP
    inside = token < TOKENS
    low = first_seen(positions, token, TOKENS, WINDOW)
    first, front, clear, masked = keys_of_rows(token, low, TOKENS, KEYS)
    d = tl.arange(0, DIM)[None, :]
    line = token.to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP
    cells = line[:, None] * HEAD_DIM + d
    there = inside[:, None] & (d < HEAD_DIM)
    q = tl.load(query + cells, mask=there, other=0.0)
    g = tl.load(grad + cells, mask=there, other=0.0)
    log = tl.load(log_total + line, mask=inside, other=0.0) * LOG2E
    shift = tl.load(delta + line, mask=inside, other=0.0)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for masks in tl.static_range(2):
        acc = _scan_keys(
            q,
            g,
            log,
            shift,
            token,
            low,
            acc,
            key + kv_head * HEAD_DIM,
            value + kv_head * HEAD_DIM,
            first,
            front,
            clear,
            masked if masks else clear,
            TOKENS,
            KV_HEADS,
            HEAD_DIM,
            SCALE,
            KEYS,
            DIM,
            PRECISION,
            masks == 1,
        )
    tl.store(dq + cells, (acc * SCALE).to(dq.dtype.element_ty), mask=there)


@triton_op("gptoss_triton::packed_attention_backward", mutates_args={})
def packed_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    out: torch.Tensor,
    log_total: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    config: list[int],
    arch: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`gptoss::packed_attention_backward`: same results. `config` and `arch` as in
    gptoss_export/kernels/launch_config.py."""
    of_keys, of_queries = unflatten(config, Packed, Packed)
    (tokens, heads, head_dim), kv_heads = query.shape, key.size(1)
    grad, query, key, value = grad.contiguous(), query.contiguous(), key.contiguous(), value.contiguous()
    dq, dk, dv = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    delta = query.new_empty((tokens, heads), dtype=torch.float32)
    blocks = triton.cdiv(tokens, _TOKENS)
    sink_sums = query.new_empty((blocks, heads), dtype=torch.float32)
    wrap_triton(_delta)[(blocks, heads)](
        grad,
        out.contiguous(),
        log_total,
        sinks,
        delta,
        sink_sums,
        TOKENS=tokens,
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK=_TOKENS,
        DIM=padded(head_dim),
        num_warps=4,
    )
    given = query, key, value, grad, log_total, delta, positions
    wrap_triton(_key_gradients)[(kv_heads, triton.cdiv(tokens, of_keys.keys))](
        *given, dk, dv, **_constants(of_keys, query, kv_heads, window, scale)
    )
    wrap_triton(_query_gradients)[(kv_heads, triton.cdiv(tokens * (heads // kv_heads), of_queries.rows))](
        *given, dq, **_constants(of_queries, query, kv_heads, window, scale)
    )
    return dq, dk, dv, sink_sums.sum(dim=0)


def _constants(
    tile: Packed, query: torch.Tensor, kv_heads: int, window: int, scale: float
) -> dict[str, int | float | str]:
    tokens, heads, head_dim = query.shape
    return {
        "TOKENS": tokens,
        "KV_HEADS": kv_heads,
        "GROUP": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "WINDOW": window,
        "SCALE": scale,
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "DIM": padded(head_dim),
        "PRECISION": dot_precision(query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call."""
    # An SM of sm_90 has two or three programs of four warps. One multiplies while others compute powers. With larger
    # tiles it would have one program of eight warps, half of which wait for the others in each step.
    default = dict.fromkeys(("keys", "queries"), Packed(rows=64, keys=64, warps=4, stages=2))
    if not has_large_products(arch):
        default["keys"], default["queries"] = default["keys"]._replace(rows=32), default["queries"]._replace(keys=32)
    query, key, window = arguments["query"], arguments["key"], arguments["window"]
    return packed_space("packed_attention_backward", query, key, window, default)


KERNEL = Kernel(packed_attention_backward, config_space)
