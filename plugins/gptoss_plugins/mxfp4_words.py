"""Rows of an MXFP4 matrix times a few vectors, on tensor cores.

A 32-bit word has eight codes. Code i of all words of a tile is one part of the product's inner dimension, and x is
passed in the same order (`word_place`). So weights need not be moved next to their neighbours of the matrix: they stay
in the registers where they were unpacked, as the left operand.

The codes of two neighbouring words are interleaved (gptoss_export/model/mxfp4.py). So a register holds the same code of
both, and one to four instructions unpack two weights: they make bfloat16, times 2^-126. One multiplication makes them
weights, times 2^-32, and the sums are multiplied by 2^32. Without that, the product of 2^126 and a scale above 2 would
not fit bfloat16, and a second multiplication would be needed. The multiplication is an fma with -0, which does not
change the product: GPUs before sm_90 have no other multiplication of pairs.

Limits of bfloat16: scales from 27 to 160, which are 2^-100 to 2^33, are exact. Smaller weights are rounded to multiples
of 2^-101. A larger scale makes NaN, as the scale 255 does; `build` refuses it for a GPU.

float32 and float16 (and Triton's interpreter) unpack in plain Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .mxfp4 import after_products, pair_values, scale_of


def padded(length: int, words: int) -> int:
    """Elements that a vector of `length` takes in the order of the words, of which `words` are taken at a time."""
    step = 8 * words
    return (length + step - 1) // step * step


@triton.jit
def word_place(i, WORDS: tl.constexpr):
    """The place of element i of a vector in the order of the words: [.., 8 codes, WORDS], a part for each step."""
    return i // (8 * WORDS) * (8 * WORDS) + i % 8 * WORDS + i // 8 % WORDS


@triton.jit
def _arrange_words(x, arranged, LENGTH: tl.constexpr, STRIDE: tl.constexpr, WORDS: tl.constexpr, WIDTH: tl.constexpr):
    """Brings one vector into the order of the words. WIDTH is STRIDE rounded up to a power of two."""
    line = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, WIDTH)
    value = tl.load(x + line * LENGTH + i, mask=i < LENGTH, other=0.0)
    tl.store(arranged + line * STRIDE + word_place(i, WORDS), value, mask=i < STRIDE)


def arrange_words(x: torch.Tensor, words: int) -> torch.Tensor:
    """x [T, H] in the order of the words, [T, padded(H, words)]."""
    (lines, length), stride = x.shape, padded(x.size(1), words)
    arranged = x.new_empty((lines, stride))
    wrap_triton(_arrange_words)[(lines,)](
        x.contiguous(),
        arranged,
        LENGTH=length,
        STRIDE=stride,
        WORDS=words,
        WIDTH=triton.next_power_of_2(stride),
        num_warps=4,
    )
    return arranged


@triton.jit
def _codes(words, factor):
    """Words of interleaved codes and their factors (`word_factors`) to eight bfloat16: code 0 of each word, code 1, ...

    Two words are unpacked with the factor of the first one. So a thread must have at least two neighbouring words of a
    row, which are of one group. A left operand of 8 words or more gives it two.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 u, e, none;
        mov.b32 none, 0x80008000;
        and.b32 u, $8, 0x81C081C0;
        fma.rn.bf16x2 $0, u, $10, none;
        shf.r.wrap.b32 u, $8, $8, 4;
        and.b32 u, u, 0x81C081C0;
        fma.rn.bf16x2 $1, u, $10, none;
        shl.b32 u, $8, 6;
        and.b32 u, u, 0x81C081C0;
        fma.rn.bf16x2 $2, u, $10, none;
        shl.b32 u, $8, 2;
        and.b32 u, u, 0x80C080C0;
        shr.u32 e, $8, 6;
        lop3.b32 u, e, 0x01000100, u, 0xEA;
        fma.rn.bf16x2 $3, u, $10, none;
        and.b32 u, $9, 0x81C081C0;
        fma.rn.bf16x2 $4, u, $10, none;
        shf.r.wrap.b32 u, $9, $9, 4;
        and.b32 u, u, 0x81C081C0;
        fma.rn.bf16x2 $5, u, $10, none;
        shl.b32 u, $9, 6;
        and.b32 u, u, 0x81C081C0;
        fma.rn.bf16x2 $6, u, $10, none;
        shl.b32 u, $9, 2;
        and.b32 u, u, 0x80C080C0;
        shr.u32 e, $9, 6;
        lop3.b32 u, e, 0x01000100, u, 0xEA;
        fma.rn.bf16x2 $7, u, $10, none;
        }
        """,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r",
        [words, factor],
        dtype=(tl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@triton.jit
def _plain_codes(words, factor, dtype: tl.constexpr):
    """`_codes` in plain Triton, in any dtype, for factors that are the scales."""
    first, second = tl.split(words.reshape(words.shape[0], words.shape[1] // 2, 2))
    codes = ()
    for i in tl.static_range(8):
        low, high = pair_values(first if i < 4 else second, i % 4)
        codes = codes + ((tl.join(low, high).reshape(words.shape) * factor).to(dtype),)
    return codes


@triton.jit
def word_factors(scales, there, PAIRED: tl.constexpr):
    """The factors of groups that are `there`, by their scales (E8M0).

    PAIRED: 2^(126 - 32) times the scale as a bfloat16, in both halves of an int32, for `_codes`; NaN for scales above
    160. They change their layout as int32: single bytes would have to be packed for that.
    """
    scale = tl.load(scales, mask=there, other=0)
    if PAIRED:
        factor = tl.where(scale > 160, 0x7FC07FC0, (scale.to(tl.int32) + 94) * 0x00800080)
    else:
        factor = scale_of(scale)
    return factor


@triton.jit
def word_weights(words, factor, dtype: tl.constexpr, PAIRED: tl.constexpr):
    """Words [R, WORDS] and their factors to weights [R, 8 WORDS] in the order of the words; PAIRED: times 2^-32."""
    if PAIRED:
        codes = _codes(words, factor)
    else:
        codes = _plain_codes(words, factor, dtype)
    weights = tl.join(
        tl.join(tl.join(codes[0], codes[4]), tl.join(codes[2], codes[6])),
        tl.join(tl.join(codes[1], codes[5]), tl.join(codes[3], codes[7])),
    )
    return weights.permute(0, 2, 3, 4, 1).reshape(words.shape[0], 8 * words.shape[1])


@triton.jit
def words_product(
    x,
    line,
    there,
    blocks,
    scales,
    row,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[R, M] float32: rows `row` [R] of an MXFP4 matrix [.., LENGTH] times lines [M] of x [.., STRIDE].

    x is in the order of the words: STRIDE is padded(LENGTH, WORDS), and the padding holds zeros. Lines that are not
    `there` [M] are not read and count as 0. WORDS words of a row are taken at a time, a power of two: at least 4, and
    at least 8 if PAIRED. WIDE: x has 2^31 elements or more.
    """
    COUNT: tl.constexpr = LENGTH // 8  # words of a row
    R: tl.constexpr = row.shape[0]
    k = tl.arange(0, WORDS)
    group = tl.arange(0, WORDS // 4)
    packed = blocks.to(tl.pointer_type(tl.int32), bitcast=True) + row[:, None] * COUNT + k[None, :]
    scales += row[:, None] * (LENGTH // 32) + group[None, :]
    if WIDE:
        line = line.to(tl.int64)
    x += line[:, None] * STRIDE + tl.arange(0, 8 * WORDS)[None, :]
    acc = tl.zeros([R, line.shape[0]], tl.float32)
    next_factor = word_factors(scales, (group < LENGTH // 32)[None, :], PAIRED)
    for start in range(0, COUNT, WORDS):
        words = tl.load(packed + start, mask=(start + k < COUNT)[None, :], other=0)
        factor = tl.broadcast_to(next_factor[:, :, None], [R, WORDS // 4, 4]).reshape(R, WORDS)
        ahead = (start + WORDS) // 4
        next_factor = word_factors(scales + ahead, (ahead + group < LENGTH // 32)[None, :], PAIRED)
        values = tl.load(x + start * 8, mask=there[:, None], other=0.0)
        if ASYNC:
            words = after_products(words)
        weights = word_weights(words, factor, values.dtype, PAIRED)
        acc = tl.dot(weights, tl.trans(values), acc, input_precision=PRECISION)
    if PAIRED:
        acc *= 4294967296.0  # 2^32
    return acc
