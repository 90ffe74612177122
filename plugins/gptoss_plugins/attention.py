"""gptoss_triton::sink_attention: `gptoss::sink_attention` for NVIDIA GPUs, decode and prefill, in Triton.

The contract (shapes, rows of the cache, sinks, idle queries) is gptoss_export/ops/attention.py's.

`_attend_pdl` serves both. A program owns one KV head of one sequence, a tile of BLOCK_M *rows* and one of
SPLITS shares of the context. A row is a pair (query, query head of the group), flattened in that order:

    row = query * group + head,   0 <= row < L * group

so that every head that reads a key reads it in the same program (grouped queries: the cache is streamed
once a group), decode (L = 1) fills a tensor-core tile of 16 rows with the 8 heads of the real model, and
a sliding layer visits window + BLOCK_M / group keys in place of window + BLOCK_M.

The keys of a tile are the positions from the first that its earliest query sees to its latest query. They
are known only on the device, so the program computes its share from the positions it reads: shares are
equal, whole tiles of BLOCK_N, whatever the context currently is. Position p lies in cache row p % R, which
holds for rings and for full layers alike. Softmax is the online one (Milakov and Gimelshein 2018;
FlashAttention, Dao 2022), float32, in powers of two. On full layers the tiles that every query of the
program sees whole run without masks.

SPLITS is static: it is chosen from the shapes so that about `Attend.programs` programs run, and so that no share
of a full cache is below two tiles. With one share the sink joins the sum at the end of the same kernel.
With more, each writes (peak, total, unnormalised sum) to float32 scratch, and `_combine_pdl` adds them up with
the sink, once (FlashDecoding).

`_attend_next_pdl` is the same for one token a sequence behind the kernel that makes its query, as in the fused
sublayer: it reads the first tile of older keys before that kernel has ended.

Numbers that keep NaN away: a masked score is -inf, but a peak starts at the finite -1e30, so the
difference of the two is -inf and never NaN; a row that saw nothing has total 0, sum 0, and its sink alone
makes the denominator; rows of V beyond the last position are loaded as 0, since they may hold anything.

Limits: query, caches and sinks are contiguous in the contract's layout; a slot of the cache (one head)
has fewer than 2^31 elements, the cache may have more; head_dim is padded to a power of two, at least 16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Cut, Kernel, parts, shape_of

from .dependent_launch import early, let_next_start, wait_for_previous

LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-1e30)  # the peak of a row that has seen no key: finite, see above


class Attend(NamedTuple):
    """How a launch is cut."""

    rows: int  # BLOCK_M
    keys: int  # BLOCK_N
    warps: int
    stages: int
    programs: int  # how many to make of the context's shares

    def splits(self, programs: int, visible: int) -> int:
        """Shares of the context, for `programs` programs without them and at most `visible` keys to see."""
        return max(1, min(self.programs // programs, triton.cdiv(visible, 2 * self.keys)))


OPTIONS = {"rows": (16, 32, 64, 128), "keys": (32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3, 4),
           "programs": (64, 128, 256)}  # fmt: skip


def guess(rows: int, dim: int, dtype: torch.dtype, visible: int) -> Attend:
    """Tiles for `rows` = L * group rows a KV head, heads padded to `dim`, at most `visible` keys to see."""
    programs = 128  # about one an SM
    if dtype == torch.float32:  # no tensor cores: products run on FMA units, out of registers
        return Attend(rows=16, keys=32, warps=4, stages=2, programs=programs)
    if rows <= 16:
        if dim > 64:
            return Attend(rows=16, keys=64, warps=4, stages=3 if dim <= 128 else 2, programs=programs)
        # With few tiles a program, many warps that load one; with many, loads ahead of their use.
        loads = {"warps": 8, "stages": 1} if visible <= 16384 else {"warps": 4, "stages": 3}
        return Attend(rows=16, keys=128, **loads, programs=programs)
    stages = 3 if dim <= 128 else 2  # shared memory holds a tile of keys and values a stage
    if rows <= 64 or dim > 128:
        return Attend(rows=64, keys=64, warps=4, stages=stages, programs=programs)
    return Attend(rows=128, keys=64, warps=4, stages=stages, programs=programs)


def cut_attention(
    positions: torch.Tensor, heads: int, k_cache: torch.Tensor, window: int, dtype: torch.dtype
) -> Cut:
    """Of one call: queries at `positions` [N, L] of `heads` heads in `dtype`."""
    (sequences, length), (_, kv_heads, rows, head_dim) = positions.shape, k_cache.shape
    visible, group = window or rows - 1, heads // kv_heads
    tiles = guess(length * group, _padded(head_dim), dtype, visible)
    options = OPTIONS if length * group > 16 else {**OPTIONS, "rows": (16,)}
    shape = shape_of(
        dtype, sequences=sequences, length=length, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        window=window, visible=visible,
    )  # fmt: skip
    return Cut("attention", shape, ("sequences", "length", "visible"), {"attend": tiles}, {"attend": options})


def _padded(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


@triton.jit
def _scan(
    q, q_at, peak, total, acc, keys, values, begin, end,
    WINDOW: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Online softmax of the rows `q` [BLOCK_M, DIM] over positions begin..end-1 of one cache slot.

    Without MASKED every row sees every key, and end - begin is whole tiles."""
    d = tl.arange(0, DIM)[None, :]
    for start in range(begin, end, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        cells = (at % ROWS)[:, None] * HEAD_DIM + d
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
        top = tl.maximum(peak, tl.max(score, 1))
        weight = tl.exp2(score - top[:, None])
        shrink = tl.exp2(peak - top)
        v = tl.load(values + cells, mask=there, other=0.0).to(q.dtype)
        acc = tl.dot(weight.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        total = total * shrink + tl.sum(weight, 1)
        peak = top
    return peak, total, acc


@triton.jit
def _attend_pdl(
    query, k_cache, v_cache, sinks, slots, positions, out, part_sum, part_peak, part_total,
    LENGTH: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr, WINDOW: tl.constexpr, SCALE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
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

    # This program's share of the positions that some row of the tile sees; none if all rows are idle.
    last = tl.max(q_at, 0)
    lowest = tl.min(tl.where(valid, q_at, last), 0)
    first = 0
    if WINDOW:
        first = tl.maximum(lowest - WINDOW + 1, 0)
    share = tl.cdiv(tl.cdiv(last + 1 - first, SPLITS), BLOCK_N) * BLOCK_N
    begin = first + tl.program_id(2) * share
    end = tl.minimum(begin + share, last + 1)

    slot = tl.load(slots + sequence).to(tl.int64)
    base = (slot * KV_HEADS + kv_head) * (ROWS + 1) * HEAD_DIM
    d = tl.arange(0, DIM)[None, :]
    line = q_index.to(tl.int64) * (KV_HEADS * GROUP) + q_head  # of query and out, seen as [N L Hq, D]
    cells = line[:, None] * HEAD_DIM + d
    writable = inside[:, None] & (d < HEAD_DIM)
    q = tl.load(query + cells, mask=writable & valid[:, None], other=0.0)

    peak = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    clear = begin  # the tiles before it are seen whole by every valid row
    if WINDOW == 0:
        clear += tl.maximum(tl.minimum(end, lowest + 1) - begin, 0) // BLOCK_N * BLOCK_N
        peak, total, acc = _scan(
            q, q_at, peak, total, acc, k_cache + base, v_cache + base, begin, clear,
            WINDOW, ROWS, HEAD_DIM, SCALE, BLOCK_N, DIM, PRECISION, False,
        )  # fmt: skip
    peak, total, acc = _scan(
        q, q_at, peak, total, acc, k_cache + base, v_cache + base, clear, end,
        WINDOW, ROWS, HEAD_DIM, SCALE, BLOCK_N, DIM, PRECISION, True,
    )  # fmt: skip
    # Idle rows went through the tiles without masks too.
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
    query, k_cache, v_cache, sinks, slots, positions, out, part_sum, part_peak, part_total,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr, WINDOW: tl.constexpr, SCALE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One share of the keys for the next token of one sequence, launched behind the kernel that makes its query,
    key and value: all older keys are there, and the first tile of them is read before the wait."""
    sequence = (tl.program_id(0) + let_next_start(EARLY)) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    position = tl.load(positions + sequence).to(tl.int32)
    slot = tl.load(slots + sequence).to(tl.int64)
    first = 0
    if WINDOW:
        first = tl.maximum(position - WINDOW + 1, 0)
    share = tl.cdiv(tl.cdiv(position + 1 - first, SPLITS), BLOCK_N) * BLOCK_N
    begin = first + tl.program_id(1) * share
    end = tl.minimum(begin + share, position + 1)
    base = (slot * KV_HEADS + kv_head) * (ROWS + 1) * HEAD_DIM
    d = tl.arange(0, DIM)[None, :]
    at = (begin + tl.arange(0, BLOCK_N))[:, None]
    cells = base + (at % ROWS) * HEAD_DIM + d
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
    peak, total, acc = _scan(
        q, q_at, peak, total, acc, k_cache + zero + base, v_cache + zero + base, begin + BLOCK_N, end,
        WINDOW, ROWS, HEAD_DIM, SCALE, BLOCK_N, DIM, PRECISION, True,
    )  # fmt: skip
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


@triton.jit
def _combine_pdl(
    part_sum, part_peak, part_total, sinks, out,
    QUERY_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr,
    DIM: tl.constexpr, SHARES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Adds the shares of one query head of one query, and its sink."""
    zero = let_next_start(EARLY) + wait_for_previous(EARLY)
    part_sum += zero
    part_peak += zero
    part_total += zero
    out += zero
    line = tl.program_id(0).to(tl.int64)
    share = tl.arange(0, SHARES)
    d = tl.arange(0, DIM)
    part = line * SPLITS + share
    peak = tl.load(part_peak + part, mask=share < SPLITS, other=NOTHING)
    total = tl.load(part_total + part, mask=share < SPLITS, other=0.0)
    there = (share < SPLITS)[:, None] & (d < HEAD_DIM)[None, :]
    acc = tl.load(part_sum + part[:, None] * HEAD_DIM + d[None, :], mask=there, other=0.0)
    sink = tl.load(sinks + line % QUERY_HEADS).to(tl.float32) * LOG2E
    top = tl.maximum(tl.max(peak, 0), sink)
    shrink = tl.exp2(peak - top)
    denominator = tl.sum(total * shrink, 0) + tl.exp2(sink - top)
    result = tl.sum(acc * shrink[:, None], 0) / denominator
    tl.store(out + line * HEAD_DIM + d, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)


@triton_op("gptoss_triton::sink_attention", mutates_args={})
def sink_attention(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    sinks: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    tiles: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::sink_attention`, the same result; tiles and arch as in gptoss_export/kernel.py."""
    (cut,) = parts(tiles, Attend)
    return attend(query, k_cache, v_cache, sinks, slots, positions, window, scale, cut, arch, behind_its_key=False)


def attend(
    query, k_cache, v_cache, sinks, slots, positions, window, scale, tiles, arch, behind_its_key
) -> torch.Tensor:  # fmt: skip
    """`behind_its_key`: the kernel launched before this one wrote the queries and the newest keys and values and
    nothing else of what is read here, and lets this one start only after its own wait."""
    sequences, length, query_heads, head_dim = query.shape
    kv_heads, rows = k_cache.size(1), k_cache.size(2) - 1
    group = query_heads // kv_heads
    dim = _padded(head_dim)
    grid = triton.cdiv(length * group, tiles.rows), sequences * kv_heads
    queries = min(length, triton.cdiv(tiles.rows, group))  # of one tile
    visible = min(rows, window + queries - 1) if window else rows
    splits = tiles.splits(grid[0] * grid[1], visible)

    out = query.new_empty(query.shape)
    parts = (sequences, length, query_heads, splits) if splits > 1 else (1,)  # not read or written
    part_peak = query.new_empty(parts, dtype=torch.float32)
    part_total = query.new_empty(parts, dtype=torch.float32)
    part_sum = query.new_empty((*parts, head_dim), dtype=torch.float32)
    shape = {
        "KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "ROWS": rows, "WINDOW": window,
        "SCALE": scale, "SPLITS": splits, "BLOCK_M": tiles.rows, "BLOCK_N": tiles.keys, "DIM": dim,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32", "EARLY": early(arch),
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    tensors = (
        query.contiguous(), k_cache, v_cache, sinks, slots, positions.contiguous(),
        out, part_sum, part_peak, part_total,
    )  # fmt: skip
    if behind_its_key and length == 1 and grid[0] == 1:
        wrap_triton(_attend_next_pdl)[(grid[1], splits)](*tensors, **shape)
    else:
        wrap_triton(_attend_pdl)[(*grid, splits)](*tensors, LENGTH=length, **shape)
    if splits > 1:
        wrap_triton(_combine_pdl)[(sequences * length * query_heads,)](
            part_sum, part_peak, part_total, sinks, out,
            QUERY_HEADS=query_heads, HEAD_DIM=head_dim, SPLITS=splits,
            DIM=dim, SHARES=triton.next_power_of_2(splits), EARLY=early(arch),
            num_warps=1,
        )  # fmt: skip
    return out


def cut(query, k_cache, v_cache, sinks, slots, positions, window, scale) -> Cut:
    return cut_attention(positions, query.size(2), k_cache, window, query.dtype)


KERNEL = Kernel(sink_attention, cut)
