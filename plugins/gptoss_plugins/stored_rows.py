"""Rows of an experts' matrix in any format times a vector: what the kernels for few pairs call.

mxfp4_rows.py, nf4_rows.py and plain_rows.py say how each format is read and multiplied. A row is spread over LANES
threads: those of a warp for MXFP4 and NF4, those of all warps of the program for plain matrices.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mxfp4_rows import dot_groups, load_groups
from .nf4_rows import dot_nf4_rows, load_nf4_rows
from .plain_rows import dot_plain_rows, load_plain_rows
from .stored import MXFP4, NF4, PLAIN, Stored

WARP = 32  # threads


def lanes_for(stored: Stored, warps: int) -> int:
    """The threads that a row is spread over, of a program of so many warps."""
    return WARP * (warps if stored.form == PLAIN.value else 1)


@triton.jit
def load_stored_rows(
    weight, scales, line, wanted, LENGTH: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr
):
    """Rows `line` [R] int64 of all rows of LENGTH weights, in registers, for `dot_stored_rows`.

    Without `wanted` nothing is read.
    """
    if FORMAT == MXFP4:
        rows = load_groups(weight, scales, line, wanted, LENGTH)
    elif FORMAT == NF4:
        rows = load_nf4_rows(weight, scales, line, wanted, LENGTH, GROUP)
    else:
        rows = load_plain_rows(weight, line, wanted, LENGTH, LANES)
    return rows


@triton.jit
def dot_stored_rows(
    rows,
    table,
    x,
    wanted,
    LENGTH: tl.constexpr,
    FORMAT: tl.constexpr,
    LANES: tl.constexpr,
    EXACT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """[R, LANES] float32: the rows times the vector x, a sum for each lane. x is as arranged.py brings it.

    Sums of MXFP4 carry a factor 2^-14.
    """
    if FORMAT == MXFP4:
        sums = dot_groups(rows[0], rows[1], x, wanted, LENGTH, EXACT)
    elif FORMAT == NF4:
        sums = dot_nf4_rows(rows[0], rows[1], table, x, wanted, LENGTH, ASSEMBLY)
    else:
        sums = dot_plain_rows(rows, x, wanted, LENGTH, LANES)
    return sums
