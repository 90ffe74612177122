"""How many rows each layer's KV cache has, and which row a position lies in.

A cache is one tensor [slots, kv heads, rows + 1, head_dim] for keys and one for values. Position p lies in
row p % rows. Layers with full attention have a row for every position of the context. Sliding layers keep
a ring: a prefill chunk of C positions writes them all before its first query reads `window` positions
back, so window + C rows are enough, whatever the context. The last row, `rows`, is scratch: padding and
idle sequences write there, so that a program of static shape never touches a live position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import ModelConfig

if TYPE_CHECKING:  # a manifest is read where there is no torch
    import torch


@dataclass(frozen=True)
class CacheShape:
    """The caches of one artifact. `chunk` is the largest prefill chunk (1 where there is none)."""

    slots: int
    max_context: int
    chunk: int

    def rows(self, config: ModelConfig, layer: int) -> int:
        """Positions that the cache of `layer` holds."""
        window = config.window(layer)
        return min(self.max_context, window + self.chunk) if window else self.max_context

    def tensor(self, config: ModelConfig, layer: int) -> tuple[int, int, int, int]:
        """Shape of the key cache of `layer`, and of its value cache."""
        return self.slots, config.num_key_value_heads, self.rows(config, layer) + 1, config.head_dim


def write(cache: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
    """Store `values` [T, kv heads, head_dim] at `positions` [T] of `slots` [T], in place. Position -1 goes to the scratch row."""
    rows = cache.size(2) - 1
    row = (positions % rows).where(positions >= 0, rows)
    cache[slots, :, row] = values


def live_rows(cache: torch.Tensor) -> torch.Tensor:
    """A cache without its scratch row, whose contents mean nothing."""
    return cache[:, :, :-1]
