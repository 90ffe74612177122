"""gptoss_triton::unembed: `gptoss::unembed` for NVIDIA GPUs.

The contract is gptoss_export/ops/unembed.py's. Many rows are PyTorch around cuBLAS. Up to FEW_TOKENS rows
are two kernels: `_logits_pdl` streams the matrix once, 1.2 GB on the real models, and each of its programs
leaves the largest of its logits, its index and the sum of exponentials; `_choose_pdl` puts those of a row
together. Logits are the float32 sums: they are not rounded to the dtype of the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Cut, Kernel, parts, shape_of
from gptoss_export.model.ops.unembed import reference

from .dependent_launch import early, let_next_start, wait_for_previous
from .rows import ROW_OPTIONS, Rows, dot_rows_of_norm, few, load_rows

LOGITS = Rows(rows=16, length=1024, warps=4)
OPTIONS = {**ROW_OPTIONS, "rows": (8, 16, 32)}  # with fewer rows the parts would be too many to choose from


@triton.jit
def _logits_pdl(
    x, norm_weight, weight, logits, part_peak, part_total, part_top,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, VOCABULARY: tl.constexpr, EPS: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """R tokens of the vocabulary for every row of x, and their peak, total and top."""
    program = tl.program_id(0) + let_next_start(EARLY)
    token = program * R + tl.arange(0, R)
    inside = token < VOCABULARY
    pieces = load_rows(weight, tl.minimum(token, VOCABULARY - 1), HIDDEN, BLOCK)
    x += wait_for_previous(EARLY)
    for row in range(ROWS):
        y = dot_rows_of_norm(pieces, x + row * HIDDEN, norm_weight, HIDDEN, BLOCK, EPS)
        tl.store(logits + row * VOCABULARY + token, y, mask=inside)
        y = tl.where(inside, y, float("-inf"))
        peak, top = tl.max(y, 0, return_indices=True)
        part = row * tl.num_programs(0) + program
        tl.store(part_peak + part, peak)
        tl.store(part_total + part, tl.sum(tl.exp(y - peak), 0))
        tl.store(part_top + part, tl.minimum(program * R + top, VOCABULARY - 1))  # of NaN it may be anything


@triton.jit
def _choose_pdl(
    part_peak, part_total, part_top, top, top_logprob, log_total,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One row; of equal peaks the first part has the lowest tokens."""
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
    best = tl.minimum(best, PARTS - 1)  # of NaN alone the index may be anything
    total = tl.sum(totals * tl.exp(peaks - peak), 0)
    tl.store(top + tl.program_id(0), tl.load(part_top + base + best).to(tl.int64))
    tl.store(top_logprob + tl.program_id(0), -tl.log(total))
    tl.store(log_total + tl.program_id(0), peak + tl.log(total))


@triton_op("gptoss_triton::unembed", mutates_args={})
def unembed(
    x: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, eps: float, tiles: list[int], arch: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`gptoss::unembed`, the same results; tiles and arch as in gptoss_export/kernel.py."""
    (rows, hidden), vocabulary = x.shape, weight.size(0)
    if not few(rows):
        return reference(x, norm_weight, weight, eps)
    (cut,) = parts(tiles, Rows)
    programs = triton.cdiv(vocabulary, cut.rows)
    logits = x.new_empty((rows, vocabulary))
    peaks, totals = x.new_empty((rows, programs)), x.new_empty((rows, programs))
    tops = x.new_empty((rows, programs), dtype=torch.int32)
    top, top_logprob, log_total = x.new_empty(rows, dtype=torch.int64), x.new_empty(rows), x.new_empty(rows)
    wrap_triton(_logits_pdl)[(programs,)](
        x.contiguous(), norm_weight, weight, logits, peaks, totals, tops,
        ROWS=rows, HIDDEN=hidden, VOCABULARY=vocabulary, EPS=eps,
        R=cut.rows, BLOCK=cut.length, EARLY=early(arch), num_warps=cut.warps,
    )  # fmt: skip
    block = triton.next_power_of_2(programs)
    wrap_triton(_choose_pdl)[(rows,)](
        peaks, totals, tops, top, top_logprob, log_total, PARTS=programs, BLOCK=block, EARLY=early(arch),
        num_warps=16 if block > 4096 else 4,
    )  # fmt: skip
    return logits, top, top_logprob, log_total


def cut(x, norm_weight, weight, eps) -> Cut | None:
    (count, hidden), vocabulary = x.shape, weight.size(0)
    if not few(count):
        return None
    shape = shape_of(weight.dtype, rows=count, hidden=hidden, vocabulary=vocabulary)
    return Cut("unembed", shape, ("rows",), {"logits": LOGITS.fit(hidden)}, {"logits": OPTIONS})


KERNEL = Kernel(unembed, cut)
