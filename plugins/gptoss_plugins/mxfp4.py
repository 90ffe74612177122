"""MXFP4 in registers, and the activation: what both regimes of the experts share."""

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
def swiglu(hidden, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """Interleaved gate and up [..., 2] to [...]."""
    gate, up = tl.split(hidden)
    gate = tl.minimum(gate, LIMIT)
    up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    return (up + 1) * gate / (1 + tl.exp(-ALPHA * gate))
