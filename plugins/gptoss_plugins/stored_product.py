"""Rows of an experts' matrix in any format times a few vectors: what the kernels for many pairs call.

mxfp4_words.py, nf4_words.py and plain_product.py say how each format is read and multiplied. For MXFP4 and NF4 the
vectors are in the order of the words. For plain matrices they are in the natural order, which is the order of the words
where one word is taken at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arch import has_asynchronous_products, has_inline_assembly
from .dense_tiles import dot_precision
from .mxfp4_words import words_product
from .nf4_words import nf4_product
from .plain_product import plain_product
from .stored import MXFP4, NF4, PLAIN, Stored


def order_for(stored: Stored, words: int) -> int:
    """The words that the order of x takes at a time, where the product takes so many."""
    return 1 if stored.form == PLAIN.value else words


def product_constants(stored: Stored, dtype: torch.dtype, arch: str) -> dict[str, int | bool | str]:
    """The constants of a product of stored weights and x, in `dtype`.

    PAIRED     weights in MXFP4 are unpacked by assembly, two an instruction
    ASSEMBLY   the table of NF4 is read by assembly (nf4.py)
    ASYNC      the product may run on behind its instruction, and is waited for (mxfp4.after_products)
    PRECISION  of tl.dot
    """
    return {
        **stored.constants,
        "PAIRED": stored.form == MXFP4.value and dtype == torch.bfloat16 and has_inline_assembly(arch),
        "ASSEMBLY": has_inline_assembly(arch),
        "ASYNC": dtype.itemsize == 2 and has_asynchronous_products(arch),
        "PRECISION": dot_precision(dtype),
    }


@triton.jit
def stored_product(
    x,
    line,
    there,
    weight,
    scales,
    table,
    row,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[R, M] float32: rows `row` [R] of a matrix [.., LENGTH], which is given, times lines [M] of x [.., STRIDE].

    8 WORDS weights of a row are taken at a time.
    """
    if FORMAT == MXFP4:
        acc = words_product(x, line, there, weight, scales, row, LENGTH, STRIDE, WORDS, PAIRED, PRECISION, ASYNC, WIDE)
    elif FORMAT == NF4:
        acc = nf4_product(
            x,
            line,
            there,
            weight,
            scales,
            table,
            row,
            LENGTH,
            STRIDE,
            WORDS,
            GROUP,
            ASSEMBLY,
            PRECISION,
            ASYNC,
            WIDE,
        )
    else:
        acc = plain_product(x, line, there, weight, row, LENGTH, STRIDE, 8 * WORDS, PRECISION, WIDE)
    return acc
