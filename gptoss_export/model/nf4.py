"""NF4: 4-bit codes into a table of 16 values, in groups that share a float32 (Dettmers et al. 2023, arXiv:2305.14314).

Layout, in an artifact:
  codes   uint8 [..., K / 2]     two weights a byte, the upper nibble is the one with the even index
  absmax  float32 [..., K / G]   the largest magnitude of each group of G weights
  table   float32 [16]           the values of the codes, in [-1, 1]; bitsandbytes calls it quant_map
A weight is  table[nibble] * absmax.

bitsandbytes stores the codes so, but its groups run on over the ends of rows, and it can quantize `absmax` once more:
checkpoint/layouts/nf4.py brings both into this form.
"""

from __future__ import annotations

import torch


def dequantize(codes: torch.Tensor, absmax: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """codes uint8 [..., K / 2], absmax float32 [..., K / G] and table float32 [16] to float32 [..., K]."""
    places = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(-2).to(torch.int64)
    groups = table[places].unflatten(-1, (absmax.size(-1), -1))
    return (groups * absmax.unsqueeze(-1)).flatten(-2)
