"""What the kernels of the experts share: MXFP4 in registers, SwiGLU, masks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_of(byte):
    """E8M0 to float32, as mxfp4.scale_values."""
    exponent = byte.to(tl.int32)
    bits = tl.maximum(exponent << 23, 0x00400000)  # 2^-127 is subnormal
    return tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def pair_bits(words, PAIR: tl.constexpr):
    """A pair of codes of interleaved words (int32, gptoss_export/model/mxfp4.py) as two bfloat16, times 2^-126.

    In plain Triton. The assembly of mxfp4_words.py does the same, that of mxfp4_rows.py makes float16 times 2^-14.
    """
    if PAIR == 0:
        bits = words & -0x7E3F7E40  # 0x81C081C0, as an int32
    elif PAIR == 1:
        bits = (((words >> 4) & 0x0FFFFFFF) | (words << 28)) & -0x7E3F7E40
    elif PAIR == 2:
        bits = (words << 6) & -0x7E3F7E40
    else:
        bits = ((words << 2) & -0x7F3F7F40) | ((words >> 6) & 0x01000100)  # 0x80C080C0
    return bits


@triton.jit
def pair_values(words, PAIR: tl.constexpr):
    """A pair of codes of interleaved words as two float32 tensors: of the lower and of the upper 16 bits."""
    bits = pair_bits(words, PAIR)
    low = (bits << 16).to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2^126
    high = (bits & -0x10000).to(tl.float32, bitcast=True) * 8.507059173023462e37
    return low, high


@triton.jit
def after_products(words):
    """Returns words (int32) unchanged, after the products that run have ended.

    A product whose left operand is in registers reads them while it runs. No assembler so far keeps other values out of
    them (seen in the code of Triton 3.6 and 3.7), so weights may not be unpacked before. tests/kernels/sass.py finds
    such code. What the wait costs, the other programs of the SM make up for.
    """
    return tl.inline_asm_elementwise(
        "wgmma.wait_group.sync.aligned 0; mov.b32 $0, $2; mov.b32 $1, $3;",
        "=&r,=&r,r,r",
        [words],
        dtype=tl.int32,
        is_pure=True,
        pack=2,
    )


@triton.jit
def swiglu(hidden, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """Interleaved gate and up [..., 2] to [...], clamped, with the (up + 1) of gpt-oss."""
    gate, up = tl.split(hidden)
    gate = tl.minimum(gate, LIMIT)
    up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    return (up + 1) * gate / (1 + tl.exp(-ALPHA * gate))


@triton.jit
def mask_and(mask, condition):
    """The mask `mask` [...] where the scalar `condition` holds, no element where it does not.

    The comparison with False adds no instruction. The interpreter of Triton 3.9 needs it: it broadcasts a scalar
    condition as an integer, and refuses masks of integers.
    """
    return (mask & condition) != False  # noqa: E712
