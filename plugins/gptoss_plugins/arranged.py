"""Vectors in the order and form that the kernels for few pairs multiply with.

The order depends on the format of the weights. mxfp4_rows.py, nf4_rows.py and plain_rows.py have the reasons.

MXFP4  Word i of a row has the weights of elements 16 (i // 2) + 4 (i % 2) + j and of those 8 later, for j = 0..3.
       float16  for bfloat16 weights: pairs of these elements, [4, H / 8, 2], times a power of two that makes the
                largest element less than 2^15
       float32  otherwise (EXACT): planes of the first elements and of those 8 later, [2, 4, H / 8]
NF4    float32 (EXACT): Word i of a row has the weights of elements 8 i + j. Planes of them, [8, H / 8]
plain  float32 (EXACT): planes of the even and of the odd elements, [2, H / 2]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .arch import has_inline_assembly
from .stored import MXFP4, NF4, Stored


class Arranged(NamedTuple):
    """x [T, H] in the order of the kernels, and [T] float32 the factor that makes results of a product right."""

    x: torch.Tensor
    undo: torch.Tensor


def is_exact(stored: Stored, dtype: torch.dtype, arch: str) -> bool:
    """Whether x is passed in float32, for weights of a model of `dtype`."""
    return stored.form != MXFP4.value or dtype != torch.bfloat16 or not has_inline_assembly(arch)


def unit_of(stored: Stored) -> float:
    """The factor by which weights are larger than what the kernels make of them: 2^14 for MXFP4."""
    return 2.0**14 if stored.form == MXFP4.value else 1.0


@triton.jit
def place_of(i, LENGTH: tl.constexpr, FORMAT: tl.constexpr, EXACT: tl.constexpr):
    """The place of element i of x in the order of the kernels."""
    if FORMAT == MXFP4:
        word = i // 16 * 2 + i % 8 // 4
        later = i // 8 % 2
        if EXACT:
            place = (4 * later + i % 4) * (LENGTH // 8) + word
        else:
            place = i % 4 * (LENGTH // 4) + 2 * word + later
    elif FORMAT == NF4:
        place = i % 8 * (LENGTH // 8) + i // 8
    else:
        place = i % 2 * (LENGTH // 2) + i // 2
    return place


@triton.jit
def power_for(peak, EXACT: tl.constexpr):
    """The power of two that x is multiplied by in its float16 form. `peak` is its largest magnitude."""
    if EXACT:
        power = peak * 0 + 1.0
    else:
        exponent = tl.minimum(tl.maximum(peak.to(tl.int32, bitcast=True) >> 23, 24), 250)
        power = ((127 + 14 + 127 - exponent) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def _arrange(
    x,
    arranged,
    undo,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
    EXACT: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Brings x of one token into the order of the kernels, and stores the factor for results of products with it."""
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + token * HIDDEN + i, mask=i < HIDDEN, other=0.0).to(tl.float32)
    power = power_for(tl.max(tl.abs(value), 0), EXACT)
    cells = token * HIDDEN + place_of(i, HIDDEN, FORMAT, EXACT)
    tl.store(arranged + cells, (value * power).to(arranged.dtype.element_ty), mask=i < HIDDEN)
    tl.store(undo + token, 1.0 / power * UNIT)


def empty_arranged(x: torch.Tensor, exact: bool) -> Arranged:
    """Memory for x [T, H] in the order of the kernels."""
    form = torch.float32 if exact else torch.float16
    return Arranged(x.new_empty(x.shape, dtype=form), x.new_empty(x.size(0), dtype=torch.float32))


def arrange(x: torch.Tensor, stored: Stored, arch: str) -> Arranged:
    """Bring x [T, H] into the order of the kernels for weights of a format."""
    (tokens, hidden), exact = x.shape, is_exact(stored, x.dtype, arch)
    arranged = empty_arranged(x, exact)
    wrap_triton(_arrange)[(tokens,)](
        x.contiguous(),
        *arranged,
        HIDDEN=hidden,
        BLOCK=triton.next_power_of_2(hidden),
        FORMAT=stored.form,
        EXACT=exact,
        UNIT=unit_of(stored),
        num_warps=4,
    )
    return arranged
