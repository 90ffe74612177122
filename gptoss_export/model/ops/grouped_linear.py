"""gptoss::grouped_linear: each row times the matrix of its expert. The rows are sorted by expert.

    out[i] = W[e] x[i] + bias[e] + added[i]     for the rows i of expert e, which are ends[e - 1] to ends[e] - 1
    out[i] = W[e]^T x[i] + bias[e] + added[i]   with `transposed`: the gradient of x, for a gradient of the result

A training step has this op forward and backward, for the weights of the experts, which stay packed, and for the LoRA
factors of each expert, which are plain matrices. What a factor adds is `added` to: so one tensor is written and kept.

Shapes
  x                [N, K]; with `transposed` [N, M]
  matrix_weight, matrix_scales, matrix_table   E matrices [M, K] in one of the formats of model/expert_weights.py
  bias             [E, M]; with `transposed` [E, K]; None: zero
  added            as the result; None: zero
  ends             [E] int32    where the rows of each expert end; ascending, the last one is at most N
  transposed       bool
  returns          [N, M]; with `transposed` [N, K]; dtype of x; sums are float32. Rows behind the last end are zero

An implementation may round the weights to the dtype of x. No matrix is kept unpacked: backward unpacks it again.

A graph of static shape cannot give an expert as many rows as it has. The reference cuts the rows of each expert into
blocks of one size, of which there is a number that always suffices, and gathers the matrix of each block. It computes
at most twice the products that are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..expert_formats import BF16, MXFP4, NF4, NF4_OF_32
from ..expert_weights import unpack
from . import draw
from .draw import Draw
from .op import Case, Op


class Blocks(NamedTuple):
    """Sorted rows in blocks of one expert each.

    rows            [B, S] int64: the row in each place of each block; any row where there is none
    there           [B, S] bool: whether there is one
    expert_of_block [B] int64
    place_of_row    [N] int64: b S + s, where the row is
    has_expert      [N] bool: whether the row is before the last end
    """

    rows: torch.Tensor
    there: torch.Tensor
    expert_of_block: torch.Tensor
    place_of_row: torch.Tensor
    has_expert: torch.Tensor


def blocks_of(ends: torch.Tensor, rows: int) -> Blocks:
    """Cut `rows` sorted rows into blocks of as many rows as an expert has on average."""
    experts = ends.size(0)
    size = max(1, -(-rows // experts))
    count = rows // size + experts  # each expert has one block at most that is not full
    ends = ends.long()
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    blocks = (ends - starts + size - 1) // size
    behind = blocks.cumsum(0)
    first = behind - blocks
    block = torch.arange(count, device=ends.device)
    expert = torch.searchsorted(behind, block, right=True).clamp(max=experts - 1)
    begin = starts[expert] + (block - first[expert]) * size
    placed = begin[:, None] + torch.arange(size, device=ends.device)
    there = (placed < ends[expert][:, None]) & (block < behind[-1])[:, None]
    row = torch.arange(rows, device=ends.device)
    own = torch.searchsorted(ends, row, right=True).clamp(max=experts - 1)
    place = (first[own] * size + row - starts[own]).clamp(max=count * size - 1)
    return Blocks(placed.clamp(max=rows - 1), there, expert, place, row < ends[-1])


def reference(
    x: torch.Tensor,
    matrix_weight: torch.Tensor,
    matrix_scales: torch.Tensor | None,
    matrix_table: torch.Tensor | None,
    bias: torch.Tensor | None,
    added: torch.Tensor | None,
    ends: torch.Tensor,
    transposed: bool,
) -> torch.Tensor:
    """The op's meaning in plain PyTorch, in float32."""
    blocks = blocks_of(ends, x.size(0))
    expert = blocks.expert_of_block
    scales = None if matrix_scales is None else matrix_scales[expert]
    matrices = unpack(matrix_weight[expert], scales, matrix_table)  # [B, M, K]
    results = torch.bmm(x.float()[blocks.rows], matrices if transposed else matrices.mT)
    if bias is not None:
        results = results + bias.float()[expert].unsqueeze(1)
    out = results.flatten(0, 1)[blocks.place_of_row]
    if added is not None:
        out = out + added.float()
    return torch.where(blocks.has_expert[:, None], out, 0.0).to(x.dtype)


def fake(
    x: torch.Tensor,
    matrix_weight: torch.Tensor,
    matrix_scales: torch.Tensor | None,
    matrix_table: torch.Tensor | None,
    bias: torch.Tensor | None,
    added: torch.Tensor | None,
    ends: torch.Tensor,
    transposed: bool,
) -> torch.Tensor:
    return x.new_empty(x.size(0), columns_of(matrix_weight, matrix_scales) if transposed else matrix_weight.size(1))


def columns_of(weight: torch.Tensor, scales: torch.Tensor | None) -> int:
    """K of matrices [E, M, K] in any format."""
    if scales is None:
        return weight.size(2)
    return 2 * weight.shape[2:].numel()  # two codes a byte


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Every format both ways, experts without rows, rows without an expert, sizes that no tile divides, low ranks, with
    and without what is added."""
    shapes = {
        # label: (rows of each expert, rows behind, M, K, format)
        "one row": ((0, 1, 0), 0, 96, 64, MXFP4),
        "even": ((20, 20, 20, 20), 0, 64, 96, MXFP4),
        "one expert has all": ((0, 0, 70), 0, 160, 64, MXFP4),
        "rows without an expert": ((5, 0, 40, 1), 7, 96, 160, MXFP4),
        "nf4": ((33, 2, 0, 65), 0, 96, 64, NF4),
        "nf4-32": ((10, 30), 3, 64, 96, NF4_OF_32),
        "bf16": ((7, 64, 9), 0, 96, 160, BF16),
        "lora_A": ((40, 0, 25), 0, 8, 96, BF16),
        "lora_B": ((40, 0, 25), 2, 96, 8, BF16),
    }
    for label, (counts, behind, rows, columns, form) in shapes.items():
        for transposed in False, True:
            random = torch.Generator().manual_seed(len(label))
            weight, scales, table = draw.stored(form, len(counts), rows, columns, random, device, dtype)
            given, made = (rows, columns) if transposed else (columns, rows)

            def normal(*shape: int) -> torch.Tensor:
                return torch.randn(shape, generator=random).to(device, dtype)  # noqa: B023

            lines = sum(counts) + behind
            arguments = {
                "x": normal(lines, given),
                "matrix_weight": weight,
                "matrix_scales": scales,
                "matrix_table": table,
                "bias": normal(len(counts), made) if label in ("even", "rows without an expert", "nf4") else None,
                "added": normal(lines, made) if label in ("rows without an expert", "bf16", "lora_B") else None,
                "ends": torch.tensor(counts, dtype=torch.int32).cumsum(0).int().to(device),
                "transposed": transposed,
            }
            yield Case(f"{label}, transposed" if transposed else label, arguments)


def even_ends(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Ends [E] where all experts have as many rows."""
    rows = next(value for value in draw.arguments.values() if isinstance(value, torch.Tensor)).size(0)
    return torch.arange(1, like.numel() + 1, device=draw.device) * rows // like.numel()


OP = Op(
    name="grouped_linear",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={
        "matrix_weight": draw.expert_weight,
        "matrix_scales": draw.expert_scales,
        "matrix_table": draw.expert_table,
        "ends": even_ends,
    },
    as_kernel=True,
)
