"""Rows of an NF4 matrix times a vector.

As for MXFP4 (mxfp4_rows.py) a thread reads 16 bytes, which are 32 weights of one group. It multiplies their sum by the
group's factor. Where a group has 64 weights, two neighbouring threads have a half each, and both read its factor.

x is float32, and its elements lie in eight planes, [8, LENGTH / 8]: plane c has those that are multiplied by code c of
each word (arranged.py). So neighbouring threads read neighbouring 16 bytes of a plane. In the natural order they would
be 128 bytes apart, which takes eight times as long.

Per weight this takes seven instructions: a shift, a mask, two for an address, a read of the table, and one or two to
multiply. By count, on an H100, they take about as long as the weights take to come from memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mxfp4 import mask_and
from .mxfp4_rows import LANES
from .nf4 import table_place, table_values


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
    """[R, LANES] float32: the rows times the vector x, a sum for each lane.

    The loop over the codes of a word is one of the compiled code. Unrolled, it would be hundreds of reads of the table,
    and the assembler would start more of them at a time than it has registers for.
    """
    place = table_place(table, ASSEMBLY)
    word = tl.arange(0, LANES)[:, None] * 4 + tl.arange(0, 4)[None, :]
    there = ()
    for i in tl.static_range(len(packed)):
        there = there + (mask_and(i * LANES * 4 + word < LENGTH // 8, wanted),)
    acc = tl.zeros(scales[0].shape, tl.float32)
    for number in range(8):
        for i in tl.static_range(len(packed)):
            values = tl.load(x + number * (LENGTH // 8) + i * LANES * 4 + word, mask=there[i], other=0.0)
            products = table_values(place, packed[i], number, ASSEMBLY) * values[None, :, :]
            acc += tl.sum(products, 2) * scales[i]
    return acc
