"""Rows of an NF4 matrix times a vector.

As for MXFP4 (mxfp4_rows.py) a thread reads 16 bytes, which are 32 weights of one group. It multiplies their sum by the
group's factor. Where a group has 64 weights, two neighbouring threads have a half each, and both read its factor.

x is float32, and its elements lie in eight planes, [8, LENGTH / 8]: plane c has those that are multiplied by code c of
each word (arranged.py). So neighbouring threads read neighbouring 16 bytes of a plane. In the natural order they would
be 128 bytes apart, which takes eight times as long.

Per weight this takes a shift, a mask, an address, a read of the table and a multiplication. On an H100 the reads of the
table take about three quarters of the time in which the weights come from memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mxfp4 import mask_and
from .mxfp4_rows import LANES
from .nf4 import nf4_codes, table_place, table_values


@triton.jit
def load_nf4_rows(codes, factors, line, wanted, LENGTH: tl.constexpr, GROUP: tl.constexpr):
    """Rows `line` [R] int64 of all NF4 rows of LENGTH weights: pieces [R, LANES, 4] of words, [R, LANES] of factors.

    Without `wanted` nothing is read.
    """
    words = codes.to(tl.pointer_type(tl.int32), bitcast=True)
    packed = ()
    scales = ()
    for start in tl.static_range(0, LENGTH // 32, LANES):
        part = start + tl.arange(0, LANES)
        there = mask_and(part < LENGTH // 32, wanted)
        word = part[:, None] * 4 + tl.arange(0, 4)[None, :]
        cells = line[:, None, None] * (LENGTH // 8) + word[None, :, :]
        packed = packed + (tl.load(words + cells, mask=there[None, :, None], other=0, cache_modifier=".cg"),)
        cells = line[:, None] * (LENGTH // GROUP) + (part // (GROUP // 32))[None, :]
        scales = scales + (tl.load(factors + cells, mask=there[None, :], other=0.0),)
    return packed, scales


@triton.jit
def dot_nf4_rows(packed, scales, table, x, wanted, LENGTH: tl.constexpr, ASSEMBLY: tl.constexpr):
    """[R, LANES] float32: the rows times the vector x, a sum for each lane."""
    place = table_place(table, ASSEMBLY)
    acc = tl.zeros(scales[0].shape, tl.float32)
    for number in range(8):
        for i in tl.static_range(len(packed)):
            part = i * LANES + tl.arange(0, LANES)
            there = mask_and(part < LENGTH // 32, wanted)[:, None]
            word = part[:, None] * 4 + tl.arange(0, 4)[None, :]
            values = tl.load(x + number * (LENGTH // 8) + word, mask=there, other=0.0)
            weights = table_values(place, nf4_codes(packed[i], number), ASSEMBLY)
            acc += tl.sum(weights * values[None, :, :], 2) * scales[i]
    return acc
