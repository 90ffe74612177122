"""gptoss::rotary: cosine and sine of the angles by which RoPE rotates the heads of each position.

    angle    = position * inv_freq          YaRN's frequencies, decoder.yarn_inv_freq
    returns    cos(angle) * concentration, sin(angle) * concentration

It is an op so that a step computes them once. A compiler that fuses pointwise operations into the kernels that use them
would compute them again for every layer.

Shapes
  positions      [T] int64       -1: padding, whose results mean nothing
  inv_freq       [D / 2] float32, radians a position
  concentration  float
  returns        cos, sin [T, D / 2] float32
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import draw
from .op import Case, Op


def reference(
    positions: torch.Tensor, inv_freq: torch.Tensor, concentration: float
) -> tuple[torch.Tensor, torch.Tensor]:
    angle = positions.float()[:, None] * inv_freq
    return angle.cos() * concentration, angle.sin() * concentration


def fake(positions: torch.Tensor, inv_freq: torch.Tensor, concentration: float) -> tuple[torch.Tensor, torch.Tensor]:
    shape = positions.size(0), inv_freq.size(0)
    return inv_freq.new_empty(shape), inv_freq.new_empty(shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Far positions, and a number of frequencies that is no power of two."""
    far = torch.tensor([0, 1, 127, 4096, 131071], device=device)
    for half in 32, 40:
        inv_freq = 150000.0 ** -(torch.arange(half, device=device) / half)
        yield Case(f"{half} frequencies", {"positions": far, "inv_freq": inv_freq, "concentration": 1.3})
    yield Case("one position", {"positions": far[-1:], "inv_freq": inv_freq, "concentration": 1.0})


OP = Op(name="rotary", reference=reference, fake=fake, cases=cases, realistic={"positions": draw.positions})
