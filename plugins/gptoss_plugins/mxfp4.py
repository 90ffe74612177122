"""What the kernels of the experts share: their weights, MXFP4 in registers, SwiGLU, masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .arch import has_asynchronous_products, has_inline_assembly
from .dense_tiles import dot_precision


@dataclass(frozen=True)
class Experts:
    """The weights of all experts and the numbers of SwiGLU, as gptoss::mxfp4_experts takes them."""

    gate_up_blocks: torch.Tensor  # [E, 2 I, H // 32, 16] uint8
    gate_up_scales: torch.Tensor  # [E, 2 I, H // 32] uint8
    gate_up_bias: torch.Tensor  # [E, 2 I]
    down_blocks: torch.Tensor  # [E, H, I // 32, 16] uint8
    down_scales: torch.Tensor  # [E, H, I // 32] uint8
    down_bias: torch.Tensor  # [E, H]
    alpha: float
    limit: float

    @property
    def count(self) -> int:
        return self.down_blocks.size(0)

    @property
    def inter(self) -> int:
        return self.down_blocks.size(2) * 32


def product_constants(dtype: torch.dtype, arch: str) -> dict[str, bool | str]:
    """The constants of a product of x, in `dtype`, and MXFP4 weights.

    PAIRED     weights are unpacked by assembly, two an instruction
    ASYNC      the product runs on while the next weights are unpacked (`after_products`)
    PRECISION  of tl.dot
    """
    return {
        "PAIRED": dtype == torch.bfloat16 and has_inline_assembly(arch),
        "ASYNC": dtype.itemsize == 2 and has_asynchronous_products(arch),
        "PRECISION": dot_precision(dtype),
    }


@triton.jit
def scale_of(byte):
    """E8M0 to float32, as mxfp4.scale_values."""
    exponent = byte.to(tl.int32)
    bits = tl.maximum(exponent << 23, 0x00400000)  # 2^-127 is subnormal
    return tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def unpack(nibbles, scale, dtype: tl.constexpr):
    """E2M1 codes (int32) times their scale, in `dtype`. Codes become float32 * 2^-126 by shifting."""
    bits = ((nibbles & 7) << 22) | ((nibbles & 8) << 28)
    # Two factors, since the product of 2^126 and a large scale does not fit float32.
    return (bits.to(tl.float32, bitcast=True) * 8.507059173023462e37 * scale).to(dtype)


@triton.jit
def unpack_pairs(packed, scale):
    """Bytes of two E2M1 codes, and their scales in bfloat16, to two bfloat16: the low codes and the high codes.

    It handles four bytes at a time, two weights an instruction. Shifting makes bfloat16 * 2^-126 of a code. Products
    are fma with -0, which does not change the product: GPUs before sm_90 have no other multiplication of pairs.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, m, s, big, none;
        mov.b32 big, 0x7E807E80;
        mov.b32 none, 0x80008000;
        prmt.b32 a, $4, 0, 0x4140;
        prmt.b32 b, $4, 0, 0x4342;
        shl.b32 m, a, 6;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, a, 12;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $0, m, $5, none;
        shl.b32 m, b, 6;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, b, 12;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $1, m, $6, none;
        shl.b32 m, a, 2;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, a, 8;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $2, m, $5, none;
        shl.b32 m, b, 2;
        and.b32 m, m, 0x01C001C0;
        shl.b32 s, b, 8;
        lop3.b32 m, s, 0x80008000, m, 0xEA;
        fma.rn.bf16x2 m, m, big, none;
        fma.rn.bf16x2 $3, m, $6, none;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r,r",
        [packed, scale],
        dtype=(tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=4,
    )


@triton.jit
def after_products(weights):
    """Returns 16-bit weights unchanged, after the products that run have ended."""
    return tl.inline_asm_elementwise(
        "wgmma.wait_group.sync.aligned 0;",
        "=r,=r,=r,=r,0,1,2,3",
        [weights],
        dtype=weights.dtype,
        is_pure=True,
        pack=8,
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
