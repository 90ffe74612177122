"""gptoss_triton::packed_attention: `gptoss::packed_attention` for NVIDIA GPUs, in Triton.

The contract (packed sequences, sinks, window) is in gptoss_export/model/ops/packed_attention.py. A program has a tile
of rows of one KV head and scans the keys that they see with the online softmax (online_softmax.py has how NaN is
avoided). packed_tiles.py says what a row is and which keys are read. The kernel differs from that of attention.py in
that there is no cache: keys lie in the order of the tokens, and no page is looked up.

The last tiles of a long sequence see the most keys, and their programs come first.

Weights are rounded to the dtype of the values for the product with them; scores and sums are float32. log_total is what
the backward op needs to compute the weights again.

Limits: scale is positive, and there are fewer than 2^31 rows. head_dim is padded to a power of two, at least 16. The
default launch config is the one that was measured for the prompts of attention.py. It has not been measured here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments

from .attention_config import padded
from .dense_tiles import dot_precision
from .online_softmax import LOG2E, NOTHING
from .packed_tiles import Packed, first_seen, keys_of_rows, packed_space, start_of


@triton.jit
def _scan(
    q,
    token,
    low,
    peak,
    total,
    acc,
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
    """Online softmax of the rows `q` [R, DIM] over so many tiles of keys. Peaks are those of scores times log2(e)."""
    d = tl.arange(0, DIM)[None, :]
    for number in range(tiles):
        at = start_of(number, first, front, clear, KEYS, MASKED) + tl.arange(0, KEYS)
        cells = at.to(tl.int64)[:, None] * (KV_HEADS * HEAD_DIM) + d
        there = d < HEAD_DIM
        if MASKED:
            there = there & (at < TOKENS)[:, None]
        k = tl.load(key + cells, mask=there, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            seen = (at[None, :] <= token[:, None]) & (at[None, :] >= low[:, None])
            score = tl.where(seen, score, float("-inf"))
        top = tl.maximum(peak, tl.max(score, 1) * (SCALE * LOG2E))
        weight = tl.exp2(score * (SCALE * LOG2E) - top[:, None])
        shrink = tl.exp2(peak - top)
        v = tl.load(value + cells, mask=there, other=0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        total = total * shrink + tl.sum(weight, 1)
        peak = top
    return peak, total, acc


@triton.jit
def _packed_attention(
    query,
    key,
    value,
    sinks,
    positions,
    out,
    log_total,
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
    """out [T, Hq, D] and log_total [T, Hq] of ROWS rows of one KV head."""
    kv_head = tl.program_id(0)
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS + tl.arange(0, ROWS)
    token = row // GROUP
    inside = token < TOKENS
    q_head = kv_head * GROUP + row % GROUP
    low = first_seen(positions, token, TOKENS, WINDOW)
    first, front, clear, masked = keys_of_rows(token, low, TOKENS, KEYS)

    d = tl.arange(0, DIM)[None, :]
    line = token.to(tl.int64) * (KV_HEADS * GROUP) + q_head  # of query and out, seen as [T Hq, D]
    cells = line[:, None] * HEAD_DIM + d
    q = tl.load(query + cells, mask=inside[:, None] & (d < HEAD_DIM), other=0.0)
    key += kv_head * HEAD_DIM
    value += kv_head * HEAD_DIM
    peak = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for masks in tl.static_range(2):
        peak, total, acc = _scan(
            q,
            token,
            low,
            peak,
            total,
            acc,
            key,
            value,
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
    sink = tl.load(sinks + q_head).to(tl.float32) * LOG2E
    top = tl.maximum(peak, sink)
    shrink = tl.exp2(peak - top)
    total = total * shrink + tl.exp2(sink - top)
    result = acc * (shrink / total)[:, None]
    tl.store(out + cells, result.to(out.dtype.element_ty), mask=inside[:, None] & (d < HEAD_DIM))
    tl.store(log_total + line, (top + tl.log2(total)) / LOG2E, mask=inside)


@triton_op("gptoss_triton::packed_attention", mutates_args={})
def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    config: list[int],
    arch: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gptoss::packed_attention`: same results. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    (tile,) = unflatten(config, Packed)
    (tokens, heads, head_dim), kv_heads = query.shape, key.size(1)
    out = query.new_empty(query.shape)
    log_total = query.new_empty((tokens, heads), dtype=torch.float32)
    wrap_triton(_packed_attention)[(kv_heads, triton.cdiv(tokens * (heads // kv_heads), tile.rows))](
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        sinks,
        positions,
        out,
        log_total,
        TOKENS=tokens,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        WINDOW=window,
        SCALE=scale,
        ROWS=tile.rows,
        KEYS=tile.keys,
        DIM=padded(head_dim),
        PRECISION=dot_precision(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, log_total


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call."""
    default = {"attend": Packed(rows=128, keys=64, warps=8, stages=3)}
    return packed_space("packed_attention", arguments["query"], arguments["key"], arguments["window"], default)


KERNEL = Kernel(packed_attention, config_space)
