"""Rows of a matrix of float numbers times a vector.

A thread has eight neighbouring weights of a row at a time, which are 16 bytes if they have 16 bits. It keeps a sum for
each of the eight, so that a weight is one multiplication. x is float32 in its natural order.

A row of 16-bit weights takes four times the registers of one in MXFP4. A program has few rows for that reason, and
LANES, the threads of a row, may be those of several warps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mxfp4 import mask_and


@triton.jit
def load_plain_rows(weight, line, wanted, LENGTH: tl.constexpr, LANES: tl.constexpr):
    """Rows `line` [R] int64 of all rows of LENGTH weights: pieces [R, LANES, 8].

    Without `wanted` nothing is read.
    """
    pieces = ()
    for start in tl.static_range(0, LENGTH // 8, LANES):
        part = start + tl.arange(0, LANES)
        there = mask_and(part < LENGTH // 8, wanted)
        cells = line[:, None, None] * LENGTH + (part[:, None] * 8 + tl.arange(0, 8)[None, :])[None, :, :]
        pieces = pieces + (tl.load(weight + cells, mask=there[None, :, None], other=0.0, cache_modifier=".cg"),)
    return pieces


@triton.jit
def dot_plain_rows(pieces, x, wanted, LENGTH: tl.constexpr, LANES: tl.constexpr):
    """[R, LANES] float32: the rows times the vector x, a sum for each lane."""
    acc = tl.zeros(pieces[0].shape, tl.float32)
    for i in tl.static_range(len(pieces)):
        part = i * LANES + tl.arange(0, LANES)
        there = mask_and(part < LENGTH // 8, wanted)[:, None]
        values = tl.load(x + part[:, None] * 8 + tl.arange(0, 8)[None, :], mask=there, other=0.0)
        acc += pieces[i].to(tl.float32) * values[None, :, :]
    return tl.sum(acc, 2)
