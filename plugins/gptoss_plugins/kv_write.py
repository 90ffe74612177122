"""gptoss_triton::kv_write: `gptoss::kv_write` for NVIDIA GPUs, one program a token and kv head.

The contract is gptoss_export/ops/kv_write.py's. A program moves one head of one token, its key and its
value, as they are: no sums, no tiles of tokens, whose rows of a ring need not be neighbours. It is for a
target whose compiler has no scatter into a tensor that it does not own. AOTInductor has: there a chunk takes
the reference, and a step of few tokens writes the cache in `_qkv_pdl` (gptoss_plugins/attention_sublayer.py).

Limits: the caches are contiguous; keys and values are copied where they are not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel


@triton.jit
def _write_kv(
    k_cache, v_cache, key, value, slots, positions,
    LENGTH: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One head of one token; LENGTH tokens a sequence."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, DIM)
    there = d < HEAD_DIM
    position = tl.load(positions + token)
    slot = tl.load(slots + token // LENGTH).to(tl.int64)
    row = tl.where(position >= 0, position % ROWS, ROWS)
    source = (token * KV_HEADS + head) * HEAD_DIM + d
    target = ((slot * KV_HEADS + head) * (ROWS + 1) + row) * HEAD_DIM + d
    tl.store(k_cache + target, tl.load(key + source, mask=there), mask=there)
    tl.store(v_cache + target, tl.load(value + source, mask=there), mask=there)


@triton_op("gptoss_triton::kv_write", mutates_args={"k_cache", "v_cache"})
def kv_write(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """`gptoss::kv_write`, same arguments, same caches afterwards."""
    tokens, kv_heads, head_dim = key.shape
    wrap_triton(_write_kv)[(tokens, kv_heads)](
        k_cache, v_cache, key.contiguous(), value.contiguous(), slots, positions.contiguous(),
        LENGTH=positions.size(1), KV_HEADS=kv_heads, HEAD_DIM=head_dim, ROWS=k_cache.size(2) - 1,
        DIM=triton.next_power_of_2(head_dim), num_warps=1,
    )  # fmt: skip


KERNEL = Kernel(kv_write)
