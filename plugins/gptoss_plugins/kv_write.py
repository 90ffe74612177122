"""gptoss_triton::kv_write: `gptoss::kv_write` for NVIDIA GPUs, one program for each token and KV head.

The contract is in gptoss_export/model/ops/kv_write.py, with what is written for values that are not finite. A program
copies the key and the value of one head of one token. It does not handle several tokens at once, because their rows
need not be neighbours.

The kernel is for compilers that cannot scatter into a tensor that the program does not own. AOTInductor can: it
compiles the op's reference. A step of few tokens does not call this op: `_qkv_pdl` in attention_sublayer.py writes
the cache.

Limits: the caches are contiguous. Keys and values that are not contiguous are copied first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel

from .online_softmax import cell


@triton.jit
def _write_kv(
    k_cache,
    v_cache,
    pages,
    key,
    value,
    slots,
    positions,
    LENGTH: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    DIM: tl.constexpr,
):
    """The key and the value of one head of one token; a sequence has LENGTH tokens."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, DIM)
    there = d < HEAD_DIM
    position = tl.load(positions + token)
    at = tl.maximum(position, 0)
    page = tl.load(pages + tl.load(slots + token // LENGTH) * PAGES + at // PAGE)
    row = cell(tl.where(position >= 0, page, 0), at, PAGE, KV_HEADS, HEAD_DIM)
    source = (token * KV_HEADS + head) * HEAD_DIM + d
    target = row + head * PAGE * HEAD_DIM + d
    k = tl.load(key + source, mask=there)
    v = tl.load(value + source, mask=there)
    finite = tl.abs(v.to(tl.float32)) < float("inf")  # False for NaN
    tl.store(k_cache + target, tl.where(finite, k, float("nan")), mask=there)
    tl.store(v_cache + target, tl.where(finite, v, 0.0), mask=there)


@triton_op("gptoss_triton::kv_write", mutates_args={"k_cache", "v_cache"})
def kv_write(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """`gptoss::kv_write`: same arguments, same contents of the caches afterwards."""
    tokens, kv_heads, head_dim = key.shape
    wrap_triton(_write_kv)[(tokens, kv_heads)](
        k_cache,
        v_cache,
        pages.contiguous(),
        key.contiguous(),
        value.contiguous(),
        slots,
        positions.contiguous(),
        LENGTH=positions.size(1),
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE=k_cache.size(2),
        PAGES=pages.size(1),
        DIM=triton.next_power_of_2(head_dim),
        num_warps=1,
    )


KERNEL = Kernel(kv_write)
