"""Rows of a matrix of float numbers times a vector.

A thread has eight neighbouring weights of a row at a time, which are 16 bytes if they have 16 bits. x is float32, and
its elements lie in two planes, [2, LENGTH / 2], of the even and of the odd ones (arranged.py). So a thread reads 16
neighbouring bytes of each plane, and its neighbours the next ones. In the natural order it would need 32 bytes, of
which it could read 16 at a time. A thread keeps four sums, so that a weight is one multiplication.

A row of 16-bit weights takes four times the registers of one in MXFP4. So a program has few rows, and LANES, the
threads of a row, are those of all of its warps.
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
    R: tl.constexpr = pieces[0].shape[0]
    acc = tl.zeros([R, LANES, 4], tl.float32)
    for i in tl.static_range(len(pieces)):
        part = i * LANES + tl.arange(0, LANES)
        there = mask_and(part < LENGTH // 8, wanted)[:, None]
        pair = part[:, None] * 4 + tl.arange(0, 4)[None, :]
        even, odd = tl.split(pieces[i].reshape(R, LANES, 4, 2))
        acc += even.to(tl.float32) * tl.load(x + pair, mask=there, other=0.0)[None, :, :]
        acc += odd.to(tl.float32) * tl.load(x + LENGTH // 2 + pair, mask=there, other=0.0)[None, :, :]
    return tl.sum(acc, 2)
