"""Rows of an MXFP4 matrix times a vector.

A thread reads 16 bytes, which are one group of 32 weights, so it applies the group's scale once, to the sum of the
group.

Unpacking handles two weights at a time, which are codes of two neighbouring words (interleaved: see
gptoss_export/model/mxfp4.py). Three to six operations bring a pair to where two float16 have their sign, low exponent
bits and first mantissa bit,

    s e e m  ->  s 000ee m000000000   which is the weight * 2^-14, for zero and the subnormal 0.5 too.

x is passed in the order of the pairs, in one of two forms (arranged.py):

    float16  for bfloat16 weights. One instruction multiplies and adds two weights (fma.rn.f16x2). Sums of the 16
             products of half a group are float16, sums of groups are float32. Rounding x to float16 has an error of
             2^-11; the bfloat16 of the contract has 2^-9.
    float32  otherwise (EXACT). Sums are float32. Tests compare the float16 form with it. It is plain Triton without
             assembly, so it runs in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mxfp4 import mask_and, pair_values, scale_of

LANES = tl.constexpr(32)  # groups of a row at a time, one a thread


@triton.jit
def _word_sum(words, x0, x1, x2, x3):
    """Words of 4 pairs of weights times 4 pairs of x: two float16 sums of four products each, in an int32."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 m, s, h;
        shl.b32 m, $1, 3;
        and.b32 m, m, 0x0E000E00;
        lop3.b32 h, $1, 0x80008000, m, 0xEA;
        mul.rn.f16x2 $0, h, $2;
        shr.u32 m, $1, 1;
        and.b32 m, m, 0x0E000E00;
        shf.r.wrap.b32 s, $1, $1, 4;
        lop3.b32 h, s, 0x80008000, m, 0xEA;
        fma.rn.f16x2 $0, h, $3, $0;
        shl.b32 m, $1, 9;
        and.b32 m, m, 0x0E000E00;
        shl.b32 s, $1, 6;
        lop3.b32 h, s, 0x80008000, m, 0xEA;
        fma.rn.f16x2 $0, h, $4, $0;
        shl.b32 m, $1, 5;
        and.b32 m, m, 0x06000600;
        shr.u32 s, $1, 3;
        lop3.b32 m, s, 0x08000800, m, 0xEA;
        shl.b32 s, $1, 2;
        lop3.b32 h, s, 0x80008000, m, 0xEA;
        fma.rn.f16x2 $0, h, $5, $0;
        }
        """,
        "=&r,r,r,r,r,r",
        [words, x0, x1, x2, x3],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _add_pairs(a, b):
    return tl.inline_asm_elementwise("add.rn.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _pair_sum(pairs):
    """Two float16 in an int32 to their float32 sum."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b16 l, h;
        .reg .f32 a, b;
        mov.b32 {l, h}, $1;
        cvt.f32.f16 a, l;
        cvt.f32.f16 b, h;
        add.f32 $0, a, b;
        }
        """,
        "=f,r",
        [pairs],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def load_groups(blocks, scales, line, wanted, LENGTH: tl.constexpr):
    """Rows `line` [R] int64 of all MXFP4 rows of LENGTH weights: pieces [R, LANES, 4] of words, [R, LANES] of scales.

    Without `wanted` nothing is read.
    """
    words = blocks.to(tl.pointer_type(tl.int32), bitcast=True)
    packed = ()
    factors = ()
    for start in tl.static_range(0, LENGTH // 32, LANES):
        group = start + tl.arange(0, LANES)
        there = mask_and(group < LENGTH // 32, wanted)
        word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        cells = line[:, None, None] * (LENGTH // 8) + word[None, :, :]
        packed = packed + (tl.load(words + cells, mask=there[None, :, None], other=0, cache_modifier=".cg"),)
        cells = line[:, None] * (LENGTH // 32) + group[None, :]
        factors = factors + (tl.load(scales + cells, mask=there[None, :], other=0),)
    return packed, factors


@triton.jit
def dot_groups(packed, factors, x, wanted, LENGTH: tl.constexpr, EXACT: tl.constexpr):
    """[R, LANES] float32: the rows times the vector x, a sum for each lane.

    The sums carry a factor 2^-14, from unpacking to float16, and the factor that x is scaled by.

    x is loaded for each tile of rows. Keeping it in registers for several tiles is slower: it lowers the occupancy.
    """
    acc = tl.zeros(factors[0].shape, tl.float32)
    for i in tl.static_range(len(packed)):
        group = i * LANES + tl.arange(0, LANES)
        there = mask_and(group < LENGTH // 32, wanted)[:, None]
        word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        if EXACT:
            sums = tl.zeros(packed[i].shape, tl.float32)
            for j in tl.static_range(4):
                low, high = pair_values(packed[i], j)
                x_low = tl.load(x + j * (LENGTH // 8) + word, mask=there, other=0.0)
                x_high = tl.load(x + (j + 4) * (LENGTH // 8) + word, mask=there, other=0.0)
                sums += low * x_low[None, :, :]
                sums += high * x_high[None, :, :]
            acc += tl.sum(sums, 2) * scale_of(factors[i]) * 6.103515625e-05  # 2^-14
        else:
            pairs = x.to(tl.pointer_type(tl.int32), bitcast=True) + word
            x0 = tl.load(pairs, mask=there, other=0)
            x1 = tl.load(pairs + LENGTH // 8, mask=there, other=0)
            x2 = tl.load(pairs + 2 * (LENGTH // 8), mask=there, other=0)
            x3 = tl.load(pairs + 3 * (LENGTH // 8), mask=there, other=0)
            sums = _word_sum(packed[i], x0[None], x1[None], x2[None], x3[None])
            acc += _pair_sum(tl.reduce(sums, 2, _add_pairs)) * scale_of(factors[i])
    return acc
