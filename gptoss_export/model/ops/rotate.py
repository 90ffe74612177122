"""gptoss::rotate: RoPE, the rotation of heads by the angles of their positions (Su et al. 2021, arXiv:2104.09864).

The two halves of a head, a and b, are rotated against each other:

    out = (a cos - b sin,  b cos + a sin)

gptoss::attention_sublayer does it inside. A training step calls this op, forward, and backward with -sin: the gradient
of a rotation is the rotation by the negative angle.

Shapes
  x         [T, heads, D]
  cos, sin  [T, D / 2] float32, of gptoss::rotary
  returns   [T, heads, D], dtype of x; computed in float32

It is an op so that the result is written once: attention reads it forward and backward, and a compiler would compute it
again for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import draw
from .op import Case, Op


def reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def fake(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One token and several, numbers of heads and sizes of a head that are no powers of two."""
    for tokens, heads, dim in (1, 8, 64), (5, 3, 32), (33, 6, 80):
        random = torch.Generator().manual_seed(tokens)
        angle = 100 * torch.rand(tokens, dim // 2, generator=random)
        arguments = {
            "x": torch.randn(tokens, heads, dim, generator=random).to(device, dtype),
            "cos": 1.3 * angle.cos().to(device),
            "sin": 1.3 * angle.sin().to(device),
        }
        yield Case(f"{tokens} tokens, {heads} heads of {dim}", arguments)


OP = Op(name="rotate", reference=reference, fake=fake, cases=cases, realistic={"cos": draw.angles, "sin": draw.angles})
