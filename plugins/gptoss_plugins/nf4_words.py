"""Rows of an NF4 matrix times a few vectors, on tensor cores.

It is built as that of MXFP4 (mxfp4_words.py): weights are the left operand and stay in the registers where they were
unpacked, and x is in the order of the words. Code i of a word is that of the weight with an index of 8 n + i, which is
the order in which `word_place` puts x. So the codes of NF4 need not be interleaved.

A weight is its table's value times the factor of its group, in float32, rounded to the dtype of x. Per weight this
takes a shift, a mask, an address, a read of the table and a multiplication, about twice as much as MXFP4.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mxfp4 import after_products
from .nf4 import carried, table_place, table_values


@triton.jit
def nf4_weights(words, factor, place, dtype: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Words [R, WORDS] and their factors to weights [R, 8 WORDS]: code 0 of each word, code 1, ..."""
    codes = ()
    for i in tl.static_range(8):
        codes = codes + ((table_values(place, words, i, ASSEMBLY) * factor).to(dtype),)
    weights = tl.join(
        tl.join(tl.join(codes[0], codes[4]), tl.join(codes[2], codes[6])),
        tl.join(tl.join(codes[1], codes[5]), tl.join(codes[3], codes[7])),
    )
    return weights.permute(0, 2, 3, 4, 1).reshape(words.shape[0], 8 * words.shape[1])


@triton.jit
def nf4_product(
    x,
    line,
    there,
    codes,
    factors,
    table,
    row,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[R, M] float32: rows `row` [R] of an NF4 matrix [.., LENGTH] times lines [M] of x [.., STRIDE].

    As mxfp4_words.words_product. WORDS words of a row are taken at a time: a power of two, at least the GROUP / 8 of a
    group.
    """
    COUNT: tl.constexpr = LENGTH // 8  # words of a row
    EACH: tl.constexpr = GROUP // 8  # words of a group
    R: tl.constexpr = row.shape[0]
    k = tl.arange(0, WORDS)
    group = tl.arange(0, WORDS // EACH)
    packed = codes.to(tl.pointer_type(tl.int32), bitcast=True) + row[:, None] * COUNT + k[None, :]
    factors += row[:, None] * (LENGTH // GROUP) + group[None, :]
    if WIDE:
        line = line.to(tl.int64)
    x += line[:, None] * STRIDE + tl.arange(0, 8 * WORDS)[None, :]
    acc = tl.zeros([R, line.shape[0]], tl.float32)
    place = table_place(table, ASSEMBLY)
    next_factor = tl.load(factors, mask=(group < LENGTH // GROUP)[None, :], other=0.0)
    for start in range(0, COUNT, WORDS):
        words = tl.load(packed + start, mask=(start + k < COUNT)[None, :], other=0)
        factor = tl.broadcast_to(next_factor[:, :, None], [R, WORDS // EACH, EACH]).reshape(R, WORDS)
        ahead = (start + WORDS) // EACH
        next_factor = tl.load(factors + ahead, mask=(ahead + group < LENGTH // GROUP)[None, :], other=0.0)
        values = tl.load(x + start * 8, mask=there[:, None], other=0.0)
        if ASYNC:
            words = after_products(words)
        weights = nf4_weights(words, factor, place, values.dtype, ASSEMBLY)
        place = carried(place, ASSEMBLY)
        acc = tl.dot(weights, tl.trans(values), acc, input_precision=PRECISION)
    return acc
