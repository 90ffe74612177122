"""MXFP4: 4-bit floats (E2M1) in groups of 32 that share one power of two (E8M0).

Specification: OCP Microscaling Formats (MX) 1.0, sections 5.2 (formats) and 6.3 (conversion).

Layout, everywhere in this project (that of the gpt-oss checkpoints):
  blocks  uint8 [..., K // 32, 16]   two weights a byte, the lower nibble is the one with the even index
  scales  uint8 [..., K // 32]       value 2^(scale - 127); 255 is NaN
A weight is  E2M1(nibble) * 2^(scale - 127),  with E2M1 in +-{0, 0.5, 1, 1.5, 2, 3, 4, 6}.
Every such product with a scale in 1..253 is exact in bfloat16 and float32.

The kernels for NVIDIA GPUs take blocks with *interleaved* codes, of the same size. Loading a runner makes them from the
checkpoint's, in place (`interleave`). In 64 bits, which are two words a and b of eight codes, the codes i of both words
get the places where they are unpacked together, as two 16-bit numbers: those of 0 to 3 in the lower half of the 64
bits, those of 4 to 7 in the upper half. A word then holds four pairs of codes. Of each pair, the code of a is in the
lower 16 bits and that of b in the upper 16, but for the sign of the second pair, which is in the other half:

    bit    15 14 13 12 11 10  9  8  7  6  5  4  3  2  1  0
    pair    0  3  3  1  1  1  2  0  0  0  3  3  1  2  2  2
    part    s  e  s  e  E  m  s  e  E  m  E  m  s  e  E  m       s e E m: bits 3 to 0 of a code

So one rotation and one mask make a pair of bfloat16, times 2^-126 (the first pair needs no rotation, the last one two
operations more).

The functions use neither tables nor constants: they are traced into graphs, whose constants would have to be shipped as
weights.
"""

from __future__ import annotations

import torch

from .expert_formats import MXFP4_GROUP

NAN_SCALE = 255  # the scale that means NaN
LARGEST_OF_GPU_KERNELS = 160  # the largest scale, 2^33, that the kernels for GPUs take in bfloat16
# The places of bits 0 to 3 of a code in 16 bits, by pair; from 16 on: in the other half of the word.
_PLACES = ((6, 7, 8, 15), (10, 11, 12, 16 + 3), (0, 1, 2, 9), (4, 5, 14, 13))
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


def packed_values(packed: torch.Tensor) -> torch.Tensor:
    """Bytes of two codes each, uint8 [..., n], to float32 [..., 2 n]; the lower nibble is the first."""
    return torch.stack((code_values(packed & 15), code_values(packed >> 4)), dim=-1).flatten(-2)


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """blocks uint8 [..., G, 16] and scales uint8 [..., G] to float32 [..., G * 32]."""
    groups = packed_values(blocks) * scale_values(scales).unsqueeze(-1)
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


def interleave(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks of a checkpoint, uint8 [..., 16], to blocks with interleaved codes of the same shape."""
    return interleave_words(blocks.contiguous().view(torch.int64)).view(torch.uint8)


def interleave_words(words: torch.Tensor) -> torch.Tensor:
    """`interleave` of any number of int64, of 16 codes each. Little-endian, as is all in an artifact."""
    return _moved(words, _moves())


def deinterleave(blocks: torch.Tensor) -> torch.Tensor:
    """The inverse of `interleave`, by operators on single numbers, so that a compiler makes one kernel of it and of
    what unpacks the blocks."""
    parts = blocks.unflatten(-1, (-1, 8)).long()
    words = torch.zeros_like(parts[..., 0])
    for byte in range(8):
        words = words | (parts[..., byte] << 8 * byte)
    back = {-distance: _signed(_shifted(mask, -distance)) for distance, mask in _moves().items()}
    found = _moved(words, back)
    return torch.stack([(found >> 8 * byte) & 255 for byte in range(8)], dim=-1).flatten(-2).to(torch.uint8)


def _moved(words: torch.Tensor, moves: dict[int, int]) -> torch.Tensor:
    moved = torch.zeros_like(words)
    for distance, mask in moves.items():
        shifted = words << distance if distance > 0 else words >> -distance
        moved = moved | (shifted & mask)
    return moved


def _moves() -> dict[int, int]:
    """How far bits of 64 move (> 0: up), and the places, as a mask, where those that move so far arrive."""
    moves: dict[int, int] = {}
    for word in range(2):
        for code in range(8):
            for bit, place in enumerate(_PLACES[code % 4]):
                to = 32 * (code // 4) + (16 * word ^ place)
                distance = to - (32 * word + 4 * code + bit)
                moves[distance] = moves.get(distance, 0) | 1 << to
    return {distance: _signed(mask) for distance, mask in moves.items()}


def _signed(mask: int) -> int:
    """64 bits as torch's integers have them."""
    return mask - (mask >> 63 << 64)


def _shifted(mask: int, distance: int) -> int:
    """64 bits moved by so many places, up or down. None of them leaves the 64."""
    bits = mask % 2**64
    return bits << distance if distance > 0 else bits >> -distance
