"""How many rows the KV cache of each layer has, and which row holds a position.

A layer has two caches [slots, kv heads, R + 1, head_dim], one for keys and one for values. A slot is one sequence's
place in them. Position p is in row p % R.

Full layers have a row for every position of the context. Sliding layers keep a ring: a prefill chunk of C positions
is written before its first query looks `window` positions back, so that R = window + C rows are enough whatever the
context.

The last row, row R, is scratch. Padding and idle sequences write there, so that a program of static shape never
touches a live position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import SLIDING, ModelConfig

if TYPE_CHECKING:  # a manifest can be read where there is no torch
    import torch


@dataclass(frozen=True)
class CacheShape:
    """The sizes that the caches depend on. `chunk` is the largest prefill chunk."""

    slots: int
    max_context: int
    chunk: int

    def rows(self, config: ModelConfig, layer: int) -> int:
        """Positions that the cache of `layer` holds."""
        window = config.window(layer)
        return min(self.max_context, window + self.chunk) if window else self.max_context

    def tensor(self, config: ModelConfig, layer: int) -> tuple[int, int, int, int]:
        """Shape of the key cache of `layer`, which is that of its value cache too."""
        return self.slots, config.num_key_value_heads, self.rows(config, layer) + 1, config.head_dim


def sequence_bytes(config: ModelConfig, length: int, itemsize: int) -> int:
    """Bytes of the keys and values that the next token of a sequence of `length` tokens sees, in numbers of `itemsize`
    bytes."""
    position = 2 * config.num_key_value_heads * config.head_dim * itemsize
    sliding = config.layer_types.count(SLIDING)
    full = config.num_hidden_layers - sliding
    return position * (full * length + sliding * min(length, config.sliding_window))


def write(cache: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
    """Store `values` [T, kv heads, head_dim] at `positions` [T] of `slots` [T], in place. Position -1 goes to the
    scratch row."""
    rows = cache.size(2) - 1
    row = (positions % rows).where(positions >= 0, rows)
    cache[slots, :, row] = values


def live_rows(cache: torch.Tensor) -> torch.Tensor:
    """A cache without its scratch row, whose contents mean nothing."""
    return cache[:, :, :-1]
