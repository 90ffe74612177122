"""Codes of NF4 in registers, and their values, for the kernels of the experts.

A 32-bit word has eight codes, those of eight neighbouring weights. The upper nibble of a byte is the first of its two
weights (gptoss_export/model/nf4.py).

A value is read from the table. Its 64 bytes stay in the L1 cache, and what a warp reads lies in one line of it, so a
read takes as long as one of shared memory. The alternative is arithmetic: to choose one of 16 values takes 15
selections.

On a GPU the read is assembly. Triton would give a load a layout of its own: the codes would be moved to other threads
before it and the values after it. In a loop over tiles Triton would also copy the values to shared memory in advance,
four bytes a copy. Assembly is an operation of each element, like an addition. Triton's interpreter reads in the
ordinary way.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def table_place(table, ASSEMBLY: tl.constexpr):
    """Where the table is, as `table_values` takes it: [1, 1] int64 for ASSEMBLY, otherwise a pointer."""
    if ASSEMBLY:
        place = tl.zeros([1, 1], tl.int64) + table.to(tl.int64, bitcast=True)
    else:
        place = table
    return place


@triton.jit
def carried(place, ASSEMBLY: tl.constexpr):
    """The same place, for the next step of a loop.

    A value that the compiler takes for new in each step of a loop has the layout of what it is used with. From one that
    is the same in all steps, Triton does not find the layout of a product's operand, and moves the weights through
    shared memory.
    """
    if ASSEMBLY:
        place = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [place], dtype=tl.int64, is_pure=True, pack=1)
    return place


@triton.jit
def table_values(place, words, number, ASSEMBLY: tl.constexpr):
    """The values (float32) of code `number` (0 to 7) of words (int32): of the weights 8 n + number of a row."""
    codes = (words >> (4 * number ^ 4)) & 15
    if ASSEMBLY:
        values = tl.inline_asm_elementwise(
            "{ .reg .b64 cell; mad.wide.u32 cell, $1, 4, $2; ld.global.b32 $0, [cell]; }",
            "=r,r,l",
            [codes, place],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        values = tl.load(place + codes)
    return values
