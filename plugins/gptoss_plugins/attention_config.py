"""The launch configs of the attention kernels (attention.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from gptoss_export.kernels.launch_config import ConfigSpace, shape_of


class Attend(NamedTuple):
    """Launch config of `_attend_pdl` and `_attend_next_pdl`.

    rows      rows of a tile (BLOCK_M)
    keys      keys that are read at a time (BLOCK_N)
    warps     of a program
    stages    of the software pipeline over the keys
    programs  how many programs the context is split for
    """

    rows: int
    keys: int
    warps: int
    stages: int
    programs: int

    def splits(self, programs: int, visible: int) -> int:
        """The number of shares, where one share gives `programs` programs and a query sees up to `visible` keys."""
        return max(1, min(self.programs // programs, triton.cdiv(visible, 2 * self.keys)))


OPTIONS = {
    "rows": (16, 32, 64, 128),
    "keys": (32, 64, 128),
    "warps": (2, 4, 8),
    "stages": (1, 2, 3, 4),
    "programs": (64, 128, 256),
}


def default_config(rows: int, heads: int, dim: int, dtype: torch.dtype, visible: int) -> Attend:
    """For `rows` = L * group rows of each of `heads` KV heads of all sequences, which are padded to `dim`, and up to
    `visible` keys that a query sees."""
    programs = 128  # about one for each SM
    if dtype == torch.float32:  # no tensor cores: products run on FMA units and take their operands from registers
        return Attend(rows=16, keys=32, warps=4, stages=2, programs=programs)
    if rows <= 16:
        if dim > 64:
            return Attend(rows=16, keys=64, warps=4, stages=3 if dim <= 128 else 2, programs=programs)
        if heads >= 256:  # there are programs enough to hide the loads of each other
            return Attend(rows=16, keys=64, warps=2, stages=3, programs=programs)
        # A program with few tiles needs many warps to load one; with many tiles it loads ahead.
        loads = {"warps": 8, "stages": 1} if visible <= 16384 else {"warps": 4, "stages": 3}
        return Attend(rows=16, keys=128, **loads, programs=programs)
    stages = 3 if dim <= 128 else 2  # each stage takes shared memory for a tile of keys and of values
    if rows <= 64 or dim > 128:
        return Attend(rows=64, keys=64, warps=4, stages=stages, programs=programs)
    return Attend(rows=128, keys=64, warps=8, stages=stages, programs=programs)


def attention_space(
    positions: torch.Tensor, heads: int, k_cache: torch.Tensor, pages: torch.Tensor, window: int, dtype: torch.dtype
) -> ConfigSpace:
    """For queries at `positions` [N, L], of `heads` heads in `dtype`."""
    (sequences, length), (_, kv_heads, page, head_dim) = positions.shape, k_cache.shape
    visible, group = window or pages.size(1) * page, heads // kv_heads
    # A chunk is as much work in one segment as in many: its tokens are what a config depends on.
    described = (sequences, 1) if length == 1 else (1, sequences * length)
    return ConfigSpace(
        name="attention",
        shape=shape_of(
            dtype,
            sequences=described[0],
            length=described[1],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            visible=visible,
        ),
        scaled=("sequences", "length", "visible"),
        default={"attend": default_config(length * group, sequences * kv_heads, padded(head_dim), dtype, visible)},
        options={"attend": OPTIONS if length * group > 16 else {**OPTIONS, "rows": (16,)}},
    )


def padded(head_dim: int) -> int:
    """The size of a head in a kernel: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(head_dim))
