"""gptoss::kv_write: writes the keys and values of some tokens to their rows of a layer's KV cache, in place.

    k_cache[page, :, row] = key[t]     v_cache[page, :, row] = value[t]
    page = pages[slot, p // G], row = p % G for a token at position p of the sequence in that slot; page 0 for padding

Where an element of the value is not finite (NaN or infinity), 0 is written in its place, and NaN in place of that
element of the key. The token then still gives NaN to every query that sees it: attention masks scores, which are made
of keys, for each query alone, but all queries of a chunk multiply the same values. Without this, one such token would
spoil the tokens before it in its chunk.

It is an op because the write is a scatter into an input of the program. A compiler that knows PyTorch's scatters uses
the reference, which is an index_put, and fuses it. A compiler that does not, or that would copy the whole cache to
change a row of it, calls a kernel.

Shapes (T = N L tokens)
  k_cache    [P, Hkv, G, D]       written in place; pages as gptoss::sink_attention has them
  v_cache    [P, Hkv, G, D]       written in place
  pages      [S, X] int32         of each slot
  key        [T, Hkv, D]          already rotated by RoPE; dtype of the caches
  value      [T, Hkv, D]          dtype of the caches; both may be views
  slots      [N] int64            which slot the sequence of segment n lives in; segments may share one
  positions  [N, L] int64         -1: padding, which goes to the scratch page
  returns    nothing

Limits: no two tokens of a call go to the same row. All padding goes to the scratch page, which nothing reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import kv_cache
from . import draw
from .op import Case, Op


def reference(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """The op's meaning in plain PyTorch."""
    slot_of, position_of = slots[:, None].expand_as(positions).flatten(), positions.flatten()
    finite = value.isfinite()
    kv_cache.write(k_cache, torch.where(finite, key, float("nan")), pages, slot_of, position_of)
    kv_cache.write(v_cache, torch.where(finite, value, 0.0), pages, slot_of, position_of)


def fake(*_: object) -> None:
    return None


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Decode and chunk, idle rows, a chunk over several pages, head sizes that are no multiples of a tile."""
    shapes = {
        # label: (slots, kv heads, head_dim, page, pages of a slot, first positions, L)
        "decode, ragged, one idle": (5, 2, 32, 24, 9, [200, 0, -1, 23], 1),
        "chunk, padded, over pages": (3, 2, 64, 16, 5, [30], 40),
        "head_dim 80": (2, 3, 80, 20, 2, [17, 5], 6),
        "shared chunk": (3, 2, 32, 8, 6, [32, 3, 39, 0], 7),
    }
    for label, (slots, kv_heads, dim, page, count, starts, length) in shapes.items():
        random = torch.Generator().manual_seed(len(label))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device, dtype)  # noqa: B023

        first = torch.tensor(starts)[:, None]
        positions = torch.where(first >= 0, first + torch.arange(length), -1)
        if length > 6:
            positions[-1 if "shared" in label else slice(None), -5:] = -1  # a padded chunk
        # As in the model, the values are a view of the qkv product, behind queries and keys.
        qkv = normal(positions.numel(), 2 * kv_heads + 2 * kv_heads, dim)
        arguments = {
            "k_cache": normal(slots * count + 1, kv_heads, page, dim),
            "v_cache": normal(slots * count + 1, kv_heads, page, dim),
            "pages": draw.table(slots, count, random).to(device),
            "key": normal(positions.numel(), kv_heads, dim),
            "value": qkv[:, -kv_heads:],
            "slots": draw.places(slots, len(starts), "shared" in label, random).to(device),
            "positions": positions.to(device),
        }
        yield Case(label, arguments)


OP = Op(
    name="kv_write",
    reference=reference,
    fake=fake,
    cases=cases,
    mutates=("k_cache", "v_cache"),
    realistic={"positions": draw.positions, "slots": draw.slots, "pages": draw.pages},
    written=lambda arguments: [kv_cache.live_pages(arguments[name]) for name in ("k_cache", "v_cache")],
    as_kernel=True,
)
