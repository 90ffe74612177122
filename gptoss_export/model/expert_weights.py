"""The weights of experts in each of the formats of model/expert_formats.py, as plain matrices.

Ops take three tensors for a matrix of all experts, and their dtypes tell the format:

            weight                                scales                        table
  mxfp4     uint8 [E, rows, columns / 32, 16]     uint8 [E, rows, columns/32]   None
  nf4       uint8 [E, rows, columns / 2]          float32 [E, rows, columns/G]  float32 [16]
  bf16      [E, rows, columns] of a float dtype   None                          None
"""

from __future__ import annotations

import torch

from . import mxfp4, nf4


def is_mxfp4(scales: torch.Tensor | None) -> bool:
    """Whether experts with such scales are in MXFP4."""
    return scales is not None and scales.dtype == torch.uint8


def unpack(weight: torch.Tensor, scales: torch.Tensor | None, table: torch.Tensor | None) -> torch.Tensor:
    """The matrices [..., rows, columns] in float32. The dimensions in front may be others than [E]."""
    if scales is None:
        return weight.float()
    return mxfp4.dequantize(weight, scales) if table is None else nf4.dequantize(weight, scales, table)
