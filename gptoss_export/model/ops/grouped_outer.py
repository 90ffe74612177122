"""gptoss::grouped_outer: for each expert, the sum of the outer products of its rows. The rows are sorted by expert.

    out[e] = sum_i a[i] b[i]^T          over the rows i of expert e, which are ends[e - 1] to ends[e] - 1

It is the gradient of the LoRA factors of the experts: that of a matrix W in y = W x is the sum of dy x^T.

Shapes
  a        [N, M]
  b        [N, K]      dtype of a
  ends     [E] int32   where the rows of each expert end; ascending, the last one is at most N
  returns  [E, M, K] float32; zero for an expert without rows

Sums are float32, in an order that does not depend on the run. The products are made from a and b in their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .grouped_linear import blocks_of, even_ends
from .op import Case, Op


def reference(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """The op's meaning in plain PyTorch, in float32."""
    blocks = blocks_of(ends, a.size(0))
    # Zero times NaN is NaN: what is in a place without a row must not count.
    left, right = (torch.where(blocks.there.unsqueeze(-1), x.float()[blocks.rows], 0.0) for x in (a, b))
    products = torch.bmm(left.mT, right)  # [B, M, K]
    numbers = torch.arange(ends.size(0), device=a.device)
    own = (blocks.expert_of_block == numbers[:, None]).float()  # [E, B]
    return torch.einsum("eb,bmk->emk", own, products)


def fake(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return a.new_empty(ends.size(0), a.size(1), b.size(1), dtype=torch.float32)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Experts without rows, rows without an expert, sizes that no tile divides, low ranks on either side."""
    shapes = {
        # label: (rows of each expert, rows behind, M, K)
        "one row": ((0, 1, 0), 0, 8, 64),
        "even": ((20, 20, 20, 20), 0, 96, 16),
        "one expert has all": ((0, 0, 150), 0, 8, 160),
        "rows without an expert": ((5, 0, 40, 1), 7, 160, 4),
        "no rows": ((0, 0), 3, 8, 32),
    }
    for label, (counts, behind, left, right) in shapes.items():
        random = torch.Generator().manual_seed(len(label))
        rows = sum(counts) + behind
        arguments = {
            "a": torch.randn(rows, left, generator=random).to(device, dtype),
            "b": torch.randn(rows, right, generator=random).to(device, dtype),
            "ends": torch.tensor(counts, dtype=torch.int32).cumsum(0).int().to(device),
        }
        yield Case(label, arguments)


OP = Op(
    name="grouped_outer",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={"ends": even_ends},
    as_kernel=True,
)
