"""gptoss_triton::unembed: `gptoss::unembed` for NVIDIA GPUs, for up to MOST_TOKENS rows.

The contract is in gptoss_export/model/ops/unembed.py. More rows are computed by the op's reference, with a cuBLAS
product.

`_logits_pdl` (one row) and `_logits_batch_pdl` (more, on tensor cores) read the weights once. Each of their programs
computes some logits of every row and writes their largest, its token and the sum of exponentials. `_choose_pdl`
combines these parts, one program a row. Logits are the float32 sums; they are not rounded to the dtype of the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, shape_of, unflatten
from gptoss_export.model.ops import Arguments

from .arch import has_dependent_launch
from .dense_tiles import (
    DENSE_OPTIONS,
    MOST_TOKENS,
    DenseTile,
    columns_for,
    dense_default,
    dense_product,
    dot_precision,
    normalise,
)
from .dependent_launch import let_next_start, wait_for_previous
from .rows import ROW_OPTIONS, Rows, dot_rows_of_norm, load_rows

LOGITS = Rows(rows=16, length=1024, warps=4)
OPTIONS = {**ROW_OPTIONS, "rows": (8, 16, 32)}  # fewer rows would leave too many parts for `_choose_pdl`
_TILE = DenseTile(rows=128, length=64, warps=4, stages=4)


@triton.jit
def _logits_pdl(
    x,
    norm_weight,
    weight,
    logits,
    part_peak,
    part_total,
    part_top,
    HIDDEN: tl.constexpr,
    VOCABULARY: tl.constexpr,
    EPS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The logits of R tokens for one row x, and their maximum (peak), its token (top), their sum (total)."""
    program = tl.program_id(0) + let_next_start(EARLY)
    token = program * R + tl.arange(0, R)
    inside = token < VOCABULARY
    pieces = load_rows(weight, tl.minimum(token, VOCABULARY - 1), HIDDEN, BLOCK)
    x += wait_for_previous(EARLY)
    y = dot_rows_of_norm(pieces, x, norm_weight, HIDDEN, BLOCK, EPS)
    tl.store(logits + token, y, mask=inside)
    y = tl.where(inside, y, float("-inf"))
    peak, top = tl.max(y, 0, return_indices=True)
    tl.store(part_peak + program, peak)
    tl.store(part_total + program, tl.sum(tl.exp(y - peak), 0))
    tl.store(part_top + program, tl.minimum(program * R + top, VOCABULARY - 1))  # of NaN the index is undefined


@triton.jit
def _logits_batch_pdl(
    x,
    weight,
    logits,
    part_peak,
    part_total,
    part_top,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
    VOCABULARY: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """As `_logits_pdl`, for ROWS rows of x, which are normalised."""
    program = tl.program_id(0) + let_next_start(EARLY)
    token = program * R + tl.arange(0, R)
    zero = wait_for_previous(EARLY)
    x += zero
    logits += zero
    part_peak += zero
    part_total += zero
    part_top += zero
    y = dense_product(x, weight, tl.minimum(token, VOCABULARY - 1), ROWS, COLUMNS, HIDDEN, BLOCK, PRECISION)
    row = tl.arange(0, COLUMNS)
    inside = (token < VOCABULARY)[:, None]
    there = row < ROWS
    cells = row.to(tl.int64)[None, :] * VOCABULARY + token[:, None]
    tl.store(logits + cells, y, mask=inside & there[None, :])
    y = tl.where(inside, y, float("-inf"))
    peak, top = tl.max(y, 0, return_indices=True)
    part = row * tl.num_programs(0) + program
    tl.store(part_peak + part, peak, mask=there)
    tl.store(part_total + part, tl.sum(tl.exp(y - peak[None, :]), 0), mask=there)
    tl.store(part_top + part, tl.minimum(program * R + top, VOCABULARY - 1), mask=there)  # of NaN it is undefined


@triton.jit
def _choose_pdl(
    part_peak,
    part_total,
    part_top,
    top,
    top_logprob,
    log_total,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Combines the parts of one row. Of equal peaks the first part wins: it has the lowest token."""
    zero = wait_for_previous(EARLY)
    part_peak += zero
    part_total += zero
    part_top += zero
    part = tl.arange(0, BLOCK)
    there = part < PARTS
    base = tl.program_id(0) * PARTS
    peaks = tl.load(part_peak + base + part, mask=there, other=float("-inf"))
    totals = tl.load(part_total + base + part, mask=there, other=0.0)
    peak, best = tl.max(peaks, 0, return_indices=True)
    best = tl.minimum(best, PARTS - 1)  # if all are NaN the index is undefined
    total = tl.sum(totals * tl.exp(peaks - peak), 0)
    tl.store(top + tl.program_id(0), tl.load(part_top + base + best).to(tl.int64))
    tl.store(top_logprob + tl.program_id(0), -tl.log(total))
    tl.store(log_total + tl.program_id(0), peak + tl.log(total))


@triton_op("gptoss_triton::unembed", mutates_args={})
def unembed(
    x: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, eps: float, config: list[int], arch: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`gptoss::unembed`: same results. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    (rows, hidden), vocabulary, early = x.shape, weight.size(0), has_dependent_launch(arch)
    batch = rows > 1
    (launch,) = unflatten(config, DenseTile if batch else Rows)
    programs = triton.cdiv(vocabulary, launch.rows)
    logits = x.new_empty((rows, vocabulary))
    peaks, totals = x.new_empty((rows, programs)), x.new_empty((rows, programs))
    tops = x.new_empty((rows, programs), dtype=torch.int32)
    top, top_logprob, log_total = x.new_empty(rows, dtype=torch.int64), x.new_empty(rows), x.new_empty(rows)
    shared = {
        "HIDDEN": hidden,
        "VOCABULARY": vocabulary,
        "R": launch.rows,
        "BLOCK": launch.length,
        "EARLY": early,
        "num_warps": launch.warps,
    }
    if batch:
        wrap_triton(_logits_batch_pdl)[(programs,)](
            normalise(x.contiguous(), norm_weight, eps, arch),
            weight,
            logits,
            peaks,
            totals,
            tops,
            ROWS=rows,
            COLUMNS=columns_for(rows),
            PRECISION=dot_precision(weight.dtype),
            num_stages=launch.stages,
            **shared,
        )
    else:
        wrap_triton(_logits_pdl)[(programs,)](
            x.contiguous(), norm_weight, weight, logits, peaks, totals, tops, EPS=eps, **shared
        )
    block = triton.next_power_of_2(programs)
    wrap_triton(_choose_pdl)[(rows,)](
        peaks,
        totals,
        tops,
        top,
        top_logprob,
        log_total,
        PARTS=programs,
        BLOCK=block,
        EARLY=early,
        num_warps=16 if block > 4096 else 4,
    )
    return logits, top, top_logprob, log_total


def covers(arguments: Arguments) -> bool:
    """Whether x [T, H] has few enough tokens. For more, cuBLAS is faster."""
    return arguments["x"].size(0) <= MOST_TOKENS


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call, which depend on its rows and on the shape of the weight [V, H]."""
    (rows, hidden), weight = arguments["x"].shape, arguments["weight"]
    batch = rows > 1
    default = dense_default(_TILE, rows, weight.dtype, arch) if batch else LOGITS.for_rows_of(hidden)
    return ConfigSpace(
        name="unembed_batch" if batch else "unembed",
        shape=shape_of(weight.dtype, rows=rows, hidden=hidden, vocabulary=weight.size(0)),
        scaled=("rows",),
        default={"logits": default},
        options={"logits": {**DENSE_OPTIONS, "rows": (64, 128, 256)} if batch else OPTIONS},
    )


KERNEL = Kernel(unembed, config_space, covers)
