"""gptoss::kv_write: writes the keys and values of some tokens to their rows of a layer's KV cache, in place.

    k_cache[slot, :, row] = key[t]     v_cache[slot, :, row] = value[t]
    row = p % R for a token at position p of the sequence in that slot, R for padding

Where an element of the value is not finite (NaN or infinity), 0 is written in its place, and NaN in place of that
element of the key. The token then still gives NaN to every query that sees it: attention masks scores, which are made
of keys, for each query alone, but all queries of a chunk multiply the same values. Without this, one such token would
spoil the tokens before it in its chunk.

It is an op because the write is a scatter into an input of the program. A compiler that knows PyTorch's scatters uses
the reference, which is an index_put, and fuses it. A compiler that does not, or that would copy the whole cache to
change a row of it, calls a kernel.

Shapes (T = N L tokens)
  k_cache    [S, Hkv, R + 1, D]   written in place; S slots, rows as gptoss::sink_attention has them
  v_cache    [S, Hkv, R + 1, D]   written in place
  key        [T, Hkv, D]          already rotated by RoPE; dtype of the caches
  value      [T, Hkv, D]          dtype of the caches; both may be views
  slots      [N] int64            which cache slot the sequence of segment n lives in; segments may share one
  positions  [N, L] int64         -1: padding, which goes to the scratch row R
  returns    nothing

Limits: positions of one call that share a slot are in different rows: no two of them are R apart. All padding of a
slot goes to the scratch row, which nothing reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import kv_cache
from . import draw
from .op import Case, Op


def reference(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """The op's meaning in plain PyTorch."""
    slot_of, position_of = slots[:, None].expand_as(positions).flatten(), positions.flatten()
    finite = value.isfinite()
    kv_cache.write(k_cache, torch.where(finite, key, float("nan")), slot_of, position_of)
    kv_cache.write(v_cache, torch.where(finite, value, 0.0), slot_of, position_of)


def fake(*_: object) -> None:
    return None


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Decode and chunk, idle rows, a ring that wraps within the chunk, head sizes that are no multiples of a tile."""
    shapes = {
        # label: (slots in cache, kv heads, head_dim, rows, first positions, L)
        "decode, ragged, one idle": (5, 2, 32, 24, [200, 0, -1, 23], 1),
        "chunk, padded, ring wraps": (3, 2, 64, 48, [30], 40),
        "head_dim 80": (2, 3, 80, 20, [17, 5], 6),
        "shared chunk, ring wraps": (3, 2, 32, 40, [32, 3, 39, 0], 7),
    }
    for label, (slots, kv_heads, dim, rows, starts, length) in shapes.items():
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
            "k_cache": normal(slots, kv_heads, rows + 1, dim),
            "v_cache": normal(slots, kv_heads, rows + 1, dim),
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
    realistic={"positions": draw.positions, "slots": draw.slots},
    written=lambda arguments: [kv_cache.live_rows(arguments[name]) for name in ("k_cache", "v_cache")],
    as_kernel=True,
)
