"""gptoss::attention_sublayer: the first half of a decoder layer, from residual stream to residual stream.

    qkv     = norm(x) @ qkv_weight.T + qkv_bias              rows: query heads, key heads, value heads
    q, k    = rotated by RoPE at their positions; k and v are written to the cache
    returns   x + attention(q, cache) @ o_weight.T + o_bias  attention is gptoss::sink_attention

Where ranks share the model, each has a part of the weights and computes a part of what is added to x. They add the
parts of all (gptoss::sum_ranks), so that every rank has the same result.

It is one op because at batch 1 only reading its weights should take time. Norm, bias, rotation and cache write can
then be part of the kernel of the first product, and the residual part of the second. Where no kernel covers a call,
the reference serves, which leaves gptoss::sink_attention and gptoss::kv_write.

Shapes (T = N L tokens, Hq query heads, Hkv key and value heads of size D)
  x            [T, H] float32
  norm_weight  [H]
  qkv_weight   [(Hq + 2 Hkv) D, H],   qkv_bias [(Hq + 2 Hkv) D]
  o_weight     [H, Hq D],             o_bias [H]
  sinks        [Hq]
  k_cache      [P, Hkv, G, D]         written in place; pages as gptoss::sink_attention has them
  v_cache      [P, Hkv, G, D]         written in place
  pages        [S, X] int32           of each slot, for the layer's kind
  cos, sin     [T, D / 2] float32     of the angles, times YaRN's concentration
  slots        [N] int64              of each segment
  positions    [N, L] int64           -1: padding, whose keys go to the scratch page and whose results mean nothing
  window       int, 0: see everything;   scale, eps   float
  places       [.] int64, model/places.py; None where one rank has the whole model
  ranks        int
  returns      [T, H] float32

Products are in the dtype of the weights with float32 sums; norm, RoPE and softmax are in float32. An implementation may
keep more digits than the reference, which rounds after each operation.

No result depends on what is not seen: cache rows, tokens of other sequences, later tokens of the same chunk, padding.
They may hold NaN and infinity. An implementation may write values that are not finite as they are, where
gptoss::kv_write would mark their keys, if its own attention keeps this promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch.nn import functional as F

from ..kv_cache import live_pages
from ..places import Box
from . import draw
from .norm import rms_norm
from .op import Case, Op
from .rotate import reference as rotate


def reference(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    o_weight: torch.Tensor,
    o_bias: torch.Tensor,
    sinks: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    eps: float,
    places: torch.Tensor | None,
    ranks: int,
) -> torch.Tensor:
    """The op's meaning in plain PyTorch, over gptoss::sink_attention and gptoss::kv_write."""
    projected = attended(
        x,
        norm_weight,
        qkv_weight,
        qkv_bias,
        o_weight,
        o_bias,
        sinks,
        k_cache,
        v_cache,
        pages,
        cos,
        sin,
        slots,
        positions,
        window,
        scale,
        eps,
    )
    if places is None:
        return x + projected
    return torch.ops.gptoss.sum_ranks(projected, x, places, ranks, Box.ATTENTION)


# What an adapter adds to the product of a matrix, such as "q_proj", with [T, in]: [T, out].
Delta: TypeAlias = Callable[[str, torch.Tensor], torch.Tensor]


def attended(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    o_weight: torch.Tensor,
    o_bias: torch.Tensor,
    sinks: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    eps: float,
    delta: Delta | None = None,
) -> torch.Tensor:
    """What is added to x, [T, H] in the dtype of the weights. delta: what adapters add to the products."""
    heads, kv_heads, head_dim = sinks.size(0), k_cache.size(1), k_cache.size(3)
    normed = rms_norm(x, norm_weight, eps).to(qkv_weight.dtype)
    qkv = F.linear(normed, qkv_weight, qkv_bias)
    if delta is not None:
        qkv = qkv + torch.cat([delta(name, normed) for name in ("q_proj", "k_proj", "v_proj")], dim=-1)
    qkv = qkv.view(-1, heads + 2 * kv_heads, head_dim)
    query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
    query, key = rotate(query, cos, sin).view(*positions.shape, heads, head_dim), rotate(key, cos, sin)
    torch.ops.gptoss.kv_write(k_cache, v_cache, pages, key, value, slots, positions)
    out = torch.ops.gptoss.sink_attention(query, k_cache, v_cache, pages, sinks, slots, positions, window, scale)
    out = out.view(x.size(0), -1)
    projected = F.linear(out, o_weight, o_bias)
    return projected if delta is None else projected + delta("o_proj", out)


def fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Decode and prefill, full and sliding, pages of several sizes, idle rows, head sizes that no tile divides."""
    shapes = {
        # label: (slots, hidden, kv heads, group, head_dim, page, pages of a slot, window, first positions, L)
        "one token, the first": (1, 64, 2, 2, 32, 64, 1, 0, [0], 1),
        "one token": (2, 96, 1, 8, 64, 64, 5, 0, [290], 1),
        "one token, window": (1, 160, 2, 2, 32, 8, 26, 16, [200], 1),
        "one token, idle": (1, 64, 1, 2, 16, 24, 1, 16, [-1], 1),
        "batch, ragged, one idle": (4, 64, 2, 4, 16, 32, 7, 0, [199, 0, -1, 128], 1),
        "largest batch of the fused kernels": (8, 64, 1, 2, 32, 8, 13, 16, [5, 17, 39, 60, -1, 0, 1, 99], 1),
        "head_dim 80": (1, 96, 2, 3, 80, 16, 7, 0, [77], 1),
        "chunk, padded": (2, 96, 2, 2, 32, 64, 2, 0, [64], 40),
        "long chunk, padded": (2, 64, 1, 2, 16, 64, 4, 20, [64], 140),
        "short chunk": (2, 64, 2, 2, 32, 16, 3, 16, [30], 7),
        "shared chunk": (3, 64, 1, 2, 32, 16, 12, 16, [160, 5, 176, 40], 16),
    }
    for label, (slots, hidden, kv_heads, group, dim, page, count, window, starts, length) in shapes.items():
        random = torch.Generator().manual_seed(len(label))

        def normal(*shape: int, dtype: torch.dtype = dtype, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(shape, generator=random)).to(device, dtype)  # noqa: B023

        first = torch.tensor(starts)[:, None]
        positions = torch.where(first >= 0, first + torch.arange(length), -1)
        if length > 7:
            positions[-1 if "shared" in label else slice(None), -5:] = -1
        heads, tokens = kv_heads * group, positions.numel()
        width = (heads + 2 * kv_heads) * dim
        angle = normal(tokens, dim // 2, dtype=torch.float32)
        arguments = {
            "x": normal(tokens, hidden, dtype=torch.float32),
            "norm_weight": 1 + normal(hidden, scale=0.1),
            "qkv_weight": normal(width, hidden, scale=hidden**-0.5),
            "qkv_bias": normal(width),
            "o_weight": normal(hidden, heads * dim, scale=(heads * dim) ** -0.5),
            "o_bias": normal(hidden),
            "sinks": 2 * normal(heads),
            "k_cache": normal(slots * count + 1, kv_heads, page, dim),
            "v_cache": normal(slots * count + 1, kv_heads, page, dim),
            "pages": draw.table(slots, count, random).to(device),
            "cos": 1.2 * angle.cos(),
            "sin": 1.2 * angle.sin(),
            "slots": draw.places(slots, len(starts), "shared" in label, random).to(device),
            "positions": positions.to(device),
            "window": window,
            "scale": dim**-0.5,
            "eps": 1e-5,
            "places": None,
            "ranks": 1,
        }
        yield Case(label, arguments)


OP = Op(
    name="attention_sublayer",
    reference=reference,
    fake=fake,
    cases=cases,
    mutates=("k_cache", "v_cache"),
    parts=("sink_attention", "kv_write", "sum_ranks"),
    realistic={
        "qkv_weight": draw.matrix,
        "o_weight": draw.matrix,
        "cos": draw.angles,
        "sin": draw.angles,
        "positions": draw.positions,
        "slots": draw.slots,
        "pages": draw.pages,
    },
    written=lambda arguments: [live_pages(arguments[name]) for name in ("k_cache", "v_cache")],
)
