"""The KV cache: pages of one pool, and which page holds a position of a sequence.

A page holds the keys or the values of PAGE positions of one sequence, for all key heads of a layer. The pages of a
layer are one tensor [P, Hkv, PAGE, D] for keys and one for values. P is chosen when an artifact is loaded.

All full layers of a sequence use the same page numbers, and so do all sliding layers. So a sequence has two lists of
pages. Programs get them as tables [slots, X] int32, one for each kind of layer: entry i is the page of positions
PAGE i to PAGE (i + 1) - 1 of the slot's sequence. A sliding layer sees `window` positions: its pages behind them are
given back, and their entries mean nothing.

A page number belongs to one of the two kinds at a time. So a full layer and a sliding layer can have the same tensor:
`pool_tensor` says which layers do. The programs do not depend on it.

Page 0 is scratch. Padding and idle rows of a step write there, and nothing reads it, so that a program of static shape
never touches a live position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import SLIDING, ModelConfig

if TYPE_CHECKING:  # a manifest can be read where there is no torch
    import torch

PAGE = 64  # positions; small pages waste little, and keep as many prefixes apart; a tile of keys reads one or two
SCRATCH = 0


def pages_for(positions: int, page: int = PAGE) -> int:
    """Pages of `page` positions that so many positions from position 0 on take."""
    return -(-positions // page)


def pool_tensor(config: ModelConfig, layer: int) -> int:
    """Which pair of the pool's tensors holds the keys and values of a layer: its number among the layers of its
    kind."""
    kinds = config.layer_types
    return kinds[:layer].count(kinds[layer])


def pool_tensors(config: ModelConfig) -> int:
    """How many pairs of tensors a pool has."""
    return 1 + max(pool_tensor(config, layer) for layer in range(config.num_hidden_layers))


def page_bytes(config: ModelConfig, itemsize: int) -> int:
    """Memory of a page in all tensors of the pool, in numbers of `itemsize` bytes."""
    return 2 * pool_tensors(config) * config.num_key_value_heads * PAGE * config.head_dim * itemsize


def sequence_bytes(config: ModelConfig, length: int, itemsize: int) -> int:
    """Bytes of the keys and values that the next token of a sequence of `length` tokens sees, in numbers of `itemsize`
    bytes."""
    position = 2 * config.num_key_value_heads * config.head_dim * itemsize
    sliding = config.layer_types.count(SLIDING)
    full = config.num_hidden_layers - sliding
    return position * (full * length + sliding * min(length, config.sliding_window))


def write(
    cache: torch.Tensor, values: torch.Tensor, pages: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> None:
    """Store `values` [T, kv heads, head_dim] at `positions` [T] of `slots` [T], in place. Position -1 goes to the
    scratch page."""
    size, at = cache.size(2), positions.clamp(min=0)
    page = pages[slots, at // size].where(positions >= 0, SCRATCH)
    cache[page, :, at % size] = values


def live_pages(cache: torch.Tensor) -> torch.Tensor:
    """A cache without its scratch page, whose contents mean nothing."""
    return cache[1:]
