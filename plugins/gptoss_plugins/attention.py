"""gptoss_triton::sink_attention: `gptoss::sink_attention` for NVIDIA GPUs, decode and prefill, in Triton.

The contract (shapes, pages of the cache, sinks, idle queries) is in gptoss_export/model/ops/attention.py.

`_attend_pdl` serves decode and prefill. A program has one KV head of one sequence, a tile of BLOCK_M *rows*, and one
of SPLITS shares of the context. A row is a pair (query, query head of the group), flattened in that order:

    row = query * group + head,   0 <= row < L * group

So all heads that read a key read it in the same program, and the cache is read once for the whole group. Decode
(L = 1) fills a tensor core tile of 16 rows with the 8 heads of a group of gpt-oss. A sliding layer visits
window + BLOCK_M / group keys; without the flattening it would visit window + BLOCK_M.

The keys of a tile are the positions from the first one that its earliest query sees to the position of its latest
query. Only the device knows them, so a program computes its share from the positions that it reads. All shares have
the same size in whole tiles of BLOCK_N, for each length of the context. The page of each key is looked up in the
slot's table, so that a tile may begin anywhere and span pages. On full layers, the tiles that every query of the
program sees as a whole are computed without masks.

SPLITS is static. It is chosen from the shapes: about `Attend.programs` programs run, and a share of a full cache has
at least two tiles. With one share, the same kernel adds the sink at its end. With more, each program writes (peak,
total, sum that is not normalised) to float32 scratch memory, and attention_shares.py adds the shares and the sink
(FlashDecoding). Softmax is in online_softmax.py.

`_attend_next_pdl` computes one token a sequence, launched after the kernel that makes its query, as in the fused
sublayer. It reads the first tile of older keys before that kernel has ended.

Limits: query, caches, pages and sinks are contiguous in the contract's layout. A page has fewer than 2^31 elements; the
whole cache may have more. head_dim is padded to a power of two, at least 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments

from .arch import has_dependent_launch
from .attention_config import Attend, attention_space, padded
from .attention_shares import combine
from .dense_tiles import dot_precision
from .dependent_launch import let_next_start, wait_for_previous
from .online_softmax import LOG2E, NOTHING, cell, scan


@triton.jit
def _attend_pdl(
    query,
    k_cache,
    v_cache,
    pages,
    sinks,
    slots,
    positions,
    out,
    part_sum,
    part_peak,
    part_total,
    LENGTH: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
    FINITE: tl.constexpr,
):
    """One share of the keys for one tile of rows; see the top of the file."""
    zero = let_next_start(EARLY) + wait_for_previous(EARLY)
    query += zero
    k_cache += zero
    v_cache += zero
    positions += zero
    slots += zero
    out += zero
    part_sum += zero
    part_peak += zero
    part_total += zero
    sequence = tl.program_id(1) // KV_HEADS
    kv_head = tl.program_id(1) % KV_HEADS
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < LENGTH * GROUP
    q_index = sequence * LENGTH + row // GROUP
    q_head = kv_head * GROUP + row % GROUP
    q_at = tl.load(positions + q_index, mask=inside, other=-1).to(tl.int32)
    valid = q_at >= 0

    # This program's share of the positions that some row of the tile sees; no positions if all rows are idle.
    last = tl.max(q_at, 0)
    lowest = tl.min(tl.where(valid, q_at, last), 0)
    first = 0
    if WINDOW:
        first = tl.maximum(lowest - WINDOW + 1, 0)
    share = tl.cdiv(tl.cdiv(last + 1 - first, SPLITS), BLOCK_N) * BLOCK_N
    begin = first + tl.program_id(2) * share
    end = tl.minimum(begin + share, last + 1)

    table = pages + tl.load(slots + sequence) * PAGES
    base = kv_head * PAGE * HEAD_DIM
    d = tl.arange(0, DIM)[None, :]
    line = q_index.to(tl.int64) * (KV_HEADS * GROUP) + q_head  # of query and out, seen as [N L Hq, D]
    cells = line[:, None] * HEAD_DIM + d
    writable = inside[:, None] & (d < HEAD_DIM)
    q = tl.load(query + cells, mask=writable & valid[:, None], other=0.0)

    peak = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    clear = begin  # every valid row sees all keys of the tiles before it
    if WINDOW == 0:
        clear += tl.maximum(tl.minimum(end, lowest + 1) - begin, 0) // BLOCK_N * BLOCK_N
        peak, total, acc = scan(
            q,
            q_at,
            peak,
            total,
            acc,
            k_cache + base,
            v_cache + base,
            table,
            begin,
            clear,
            WINDOW,
            PAGE,
            KV_HEADS,
            HEAD_DIM,
            SCALE,
            BLOCK_N,
            DIM,
            PRECISION,
            False,
            FINITE,
        )
    peak, total, acc = scan(
        q,
        q_at,
        peak,
        total,
        acc,
        k_cache + base,
        v_cache + base,
        table,
        clear,
        end,
        WINDOW,
        PAGE,
        KV_HEADS,
        HEAD_DIM,
        SCALE,
        BLOCK_N,
        DIM,
        PRECISION,
        True,
        FINITE,
    )
    # The tiles without masks counted idle rows as well.
    peak = tl.where(valid, peak, NOTHING)
    total = tl.where(valid, total, 0.0)
    acc = tl.where(valid[:, None], acc, 0.0)

    if SPLITS == 1:
        sink = tl.load(sinks + q_head, mask=inside, other=0.0).to(tl.float32) * LOG2E
        top = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - top)
        result = acc * (shrink / (total * shrink + tl.exp2(sink - top)))[:, None]
        tl.store(out + cells, result.to(out.dtype.element_ty), mask=writable)
    else:
        part = line * SPLITS + tl.program_id(2)
        tl.store(part_sum + part[:, None] * HEAD_DIM + d, acc, mask=writable)
        tl.store(part_peak + part, peak, mask=inside)
        tl.store(part_total + part, total, mask=inside)


@triton.jit
def _attend_next_pdl(
    query,
    k_cache,
    v_cache,
    pages,
    sinks,
    slots,
    positions,
    out,
    part_sum,
    part_peak,
    part_total,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One share of the keys for the next token of one sequence, launched after the kernel that makes its query, key and
    value. All older keys are in the cache, so the first tile of them is read before the wait."""
    sequence = (tl.program_id(0) + let_next_start(EARLY)) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    position = tl.load(positions + sequence).to(tl.int32)
    table = pages + tl.load(slots + sequence) * PAGES
    first = 0
    if WINDOW:
        first = tl.maximum(position - WINDOW + 1, 0)
    share = tl.cdiv(tl.cdiv(position + 1 - first, SPLITS), BLOCK_N) * BLOCK_N
    begin = first + tl.program_id(1) * share
    end = tl.minimum(begin + share, position + 1)
    base = kv_head * PAGE * HEAD_DIM
    d = tl.arange(0, DIM)[None, :]
    at = (begin + tl.arange(0, BLOCK_N))[:, None]
    page = tl.load(table + at // PAGE, mask=at < end, other=0)
    cells = base + cell(page, at, PAGE, KV_HEADS, HEAD_DIM) + d
    older = (at < end) & (at < position) & (d < HEAD_DIM)
    k_older = tl.load(k_cache + cells, mask=older, other=0.0)
    v_older = tl.load(v_cache + cells, mask=older, other=0.0)

    zero = wait_for_previous(EARLY)
    newest = (at < end) & (at == position) & (d < HEAD_DIM)
    k = tl.where(newest, tl.load(k_cache + zero + cells, mask=newest, other=0.0), k_older)
    v = tl.where(newest, tl.load(v_cache + zero + cells, mask=newest, other=0.0), v_older)
    row = tl.arange(0, BLOCK_M)
    inside = row < GROUP
    line = sequence * (KV_HEADS * GROUP) + kv_head * GROUP + row  # of query and out, seen as [N Hq, D]
    writable = inside[:, None] & (d < HEAD_DIM)
    q = tl.load(query + zero + line[:, None] * HEAD_DIM + d, mask=writable, other=0.0)

    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (SCALE * LOG2E)
    score = tl.where(tl.trans(at) < end, score, float("-inf"))
    peak = tl.maximum(tl.max(score, 1), NOTHING)
    weight = tl.exp2(score - peak[:, None])
    total = tl.sum(weight, 1)
    acc = tl.dot(weight.to(q.dtype), v, input_precision=PRECISION)
    q_at = tl.full([BLOCK_M], 0, tl.int32) + position
    peak, total, acc = scan(
        q,
        q_at,
        peak,
        total,
        acc,
        k_cache + zero + base,
        v_cache + zero + base,
        table,
        begin + BLOCK_N,
        end,
        WINDOW,
        PAGE,
        KV_HEADS,
        HEAD_DIM,
        SCALE,
        BLOCK_N,
        DIM,
        PRECISION,
        True,
        True,
    )
    if SPLITS == 1:
        sink = tl.load(sinks + kv_head * GROUP + row, mask=inside, other=0.0).to(tl.float32) * LOG2E
        top = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - top)
        result = acc * (shrink / (total * shrink + tl.exp2(sink - top)))[:, None]
        result = tl.where(position >= 0, result, 0.0)
        tl.store(out + zero + line[:, None] * HEAD_DIM + d, result.to(out.dtype.element_ty), mask=writable)
    else:
        part = line * SPLITS + tl.program_id(1) + zero
        tl.store(part_sum + part[:, None] * HEAD_DIM + d, acc, mask=writable)
        tl.store(part_peak + part, peak, mask=inside)
        tl.store(part_total + part, total, mask=inside)


@dataclass(frozen=True)
class AttentionInputs:
    """The arguments of gptoss::sink_attention."""

    query: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    pages: torch.Tensor
    sinks: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    window: int
    scale: float


def attend(inputs: AttentionInputs, config: Attend, arch: str, after_its_query: bool = False) -> torch.Tensor:
    """[N, L, Hq, D]: launches the kernels.

    after_its_query: the kernel that was launched before this one wrote the queries and the newest keys and values, and
    nothing else that is read here. It lets this one start only after its own wait.
    """
    query, k_cache = inputs.query, inputs.k_cache
    sequences, length, query_heads, head_dim = query.shape
    kv_heads, page, pages = k_cache.size(1), k_cache.size(2), inputs.pages
    group, rows = query_heads // kv_heads, pages.size(1) * page
    dim, early = padded(head_dim), has_dependent_launch(arch)
    grid = triton.cdiv(length * group, config.rows), sequences * kv_heads
    queries = min(length, triton.cdiv(config.rows, group))  # of one tile
    visible = min(rows, inputs.window + queries - 1) if inputs.window else rows
    splits = config.splits(grid[0] * grid[1], visible)

    out = query.new_empty(query.shape)
    scratch = (sequences, length, query_heads, splits) if splits > 1 else (1,)  # one share neither writes nor reads it
    part_peak = query.new_empty(scratch, dtype=torch.float32)
    part_total = query.new_empty(scratch, dtype=torch.float32)
    part_sum = query.new_empty((*scratch, head_dim), dtype=torch.float32)
    tensors = (
        query.contiguous(),
        k_cache,
        inputs.v_cache,
        pages.contiguous(),
        inputs.sinks,
        inputs.slots,
        inputs.positions.contiguous(),
        out,
        part_sum,
        part_peak,
        part_total,
    )
    constants = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "PAGE": page,
        "PAGES": pages.size(1),
        "WINDOW": inputs.window,
        "SCALE": inputs.scale,
        "SPLITS": splits,
        "BLOCK_M": config.rows,
        "BLOCK_N": config.keys,
        "DIM": dim,
        "PRECISION": dot_precision(query.dtype),
        "EARLY": early,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
    if after_its_query and length == 1 and grid[0] == 1:
        wrap_triton(_attend_next_pdl)[(grid[1], splits)](*tensors, **constants)
    else:
        # Values that the kernel before wrote may be NaN. All rows of a single token see the same keys.
        finite = length == 1 or not after_its_query
        wrap_triton(_attend_pdl)[(*grid, splits)](*tensors, LENGTH=length, FINITE=finite, **constants)
    if splits > 1:
        combine(part_sum, part_peak, part_total, inputs.sinks, out, early)
    return out


@triton_op("gptoss_triton::sink_attention", mutates_args={})
def sink_attention(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    sinks: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::sink_attention`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    inputs = AttentionInputs(query, k_cache, v_cache, pages, sinks, slots, positions, window, scale)
    (launch,) = unflatten(config, Attend)
    return attend(inputs, launch, arch)


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call, which depend on its rows, its heads and the length of its KV cache."""
    query = arguments["query"]
    caches = arguments["k_cache"], arguments["pages"]
    return attention_space(arguments["positions"], query.size(2), *caches, arguments["window"], query.dtype)


KERNEL = Kernel(sink_attention, config_space)
