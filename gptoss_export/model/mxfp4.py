"""MXFP4: 4-bit floats (E2M1) in groups of 32 that share one power of two (E8M0).

Specification: OCP Microscaling Formats (MX) 1.0, sections 5.2 (formats) and 6.3 (conversion).

Layout, everywhere in this project (that of the gpt-oss checkpoints):
  blocks  uint8 [..., K // 32, 16]   two weights a byte, the lower nibble is the one with the even index
  scales  uint8 [..., K // 32]       value 2^(scale - 127); 255 is NaN
A weight is  E2M1(nibble) * 2^(scale - 127),  with E2M1 in +-{0, 0.5, 1, 1.5, 2, 3, 4, 6}.
Every such product with a scale in 1..253 is exact in bfloat16 and float32.

The functions use neither tables nor constants: they are traced into graphs, whose constants would have to be shipped as
weights.
"""

from __future__ import annotations

import torch

from .config import MXFP4_GROUP

NAN_SCALE = 255  # the scale that means NaN
_EMAX = 2  # exponent of the largest E2M1 value, 6 = 1.5 * 2^2


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """E8M0 bytes to float32 powers of two, exactly: the byte is the exponent field of a float32."""
    exponent = scales.to(torch.int32)
    # 2^-127 (byte 0) is subnormal: its pattern is not the byte shifted but 0x00400000.
    bits = torch.clamp(exponent << 23, min=0x00400000)
    return torch.where(exponent == NAN_SCALE, 0x7FC00000, bits).view(torch.float32)


def code_values(codes: torch.Tensor) -> torch.Tensor:
    """E2M1 codes 0..15 (any integer dtype) to float32."""
    magnitude = (codes & 7).to(torch.float32)
    # Twice the value is 0 1 2 3 4 6 8 12: three straight lines with slopes 1, 2 and 4.
    upper = torch.where(magnitude < 6, 2 * magnitude - 4, 4 * magnitude - 16)
    twice = torch.where(magnitude < 4, magnitude, upper)
    return torch.where(codes > 7, -0.5, 0.5) * twice


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """blocks uint8 [..., G, 16] and scales uint8 [..., G] to float32 [..., G * 32]."""
    pairs = torch.stack((code_values(blocks & 15), code_values(blocks >> 4)), dim=-1)
    groups = pairs.flatten(-2) * scale_values(scales).unsqueeze(-1)
    return groups.flatten(-2)


def quantize(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [..., K] (K a multiple of 32, any float dtype) to blocks [..., K // 32, 16] and scales [..., K // 32].

    This is the OCP rule. The shared exponent is floor(log2(largest magnitude)) - 2. Elements are rounded to the
    nearest E2M1 value, ties to the even code, and magnitudes above 6 saturate. Values that MXFP4 holds exactly come
    back exactly. A group with NaN or infinity gets scale 255."""
    groups = weights.to(torch.float32).unflatten(-1, (-1, MXFP4_GROUP))
    largest = groups.abs().amax(dim=-1)
    finite = torch.isfinite(largest)
    _, exponent = torch.frexp(torch.where(finite, largest, 1.0))  # largest = m * 2^exponent, m in [0.5, 1)
    shared = torch.where(largest > 0, exponent - 1 - _EMAX, -127).clamp(-127, 127)
    scales = torch.where(finite, shared + 127, NAN_SCALE).to(torch.uint8)
    scaled = torch.ldexp(groups, -shared.unsqueeze(-1)).nan_to_num(0.0)
    blocks = _encode(scaled)
    return (blocks[..., 0::2] | (blocks[..., 1::2] << 4)), scales


def _encode(values: torch.Tensor) -> torch.Tensor:
    """float32 to E2M1 codes (uint8), round half to even, saturating.

    On each of the three straight lines the codes are equally spaced, so that rounding the position on the line rounds
    the code. torch.round rounds ties to even, and codes of even number have mantissa bit 0."""
    twice = (2 * values.abs()).clamp(max=12)
    upper = torch.where(twice < 8, torch.round(twice / 2) + 2, torch.round(twice / 4) + 4)
    code = torch.where(twice < 4, torch.round(twice), upper)
    negative = torch.signbit(values)
    return (code + torch.where(negative, 8.0, 0.0)).to(torch.uint8)
