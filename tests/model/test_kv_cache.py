"""Which rows a write to the KV cache touches: the rows of its positions, the scratch row for padding, nothing else."""

from __future__ import annotations

import torch

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.model.kv_cache import CacheShape, live_rows
from gptoss_export.model.ops import OPS

SLOTS, HEADS, ROWS, DIM = 3, 2, 24, 16
UNTOUCHED = -7.0


def test_writes_touch_their_rows_alone() -> None:
    """Each cache lies between guard slots, so that a write in front of it or behind it shows."""
    guarded = [torch.full((SLOTS + 2, HEADS, ROWS + 1, DIM), UNTOUCHED) for _ in range(2)]
    k_cache, v_cache = (buffer[1:-1] for buffer in guarded)
    positions = torch.tensor([[0, 1, 2, -1], [ROWS - 1, ROWS, ROWS + 1, -1]])  # padded; the second one wraps
    slots = torch.tensor([2, 0])
    key, value = torch.rand(2, positions.numel(), HEADS, DIM)
    OPS["kv_write"].reference(k_cache, v_cache, key, value, slots, positions)

    scratch = ROWS
    written = {(2, 0): 0, (2, 1): 1, (2, 2): 2, (0, ROWS - 1): 4, (0, 0): 5, (0, 1): 6}  # (slot, row): token
    for buffer, tokens in zip(guarded, (key, value), strict=True):
        expected = torch.full_like(buffer, UNTOUCHED)
        for (slot, row), token in written.items():
            expected[1 + slot, :, row] = tokens[token]
        for slot, token in {2: 3, 0: 7}.items():  # the padding of a slot goes to the slot's own scratch row
            expected[1 + slot, :, scratch] = tokens[token]
        assert torch.equal(buffer, expected)


def test_live_rows_leave_out_the_scratch_row() -> None:
    cache = torch.zeros(SLOTS, HEADS, ROWS + 1, DIM)
    live_rows(cache).fill_(1)
    assert cache[:, :, :ROWS].all() and not cache[:, :, ROWS].any()


def test_sliding_layers_hold_window_and_chunk_only() -> None:
    config = PRESETS["tiny"]  # a window of 32 in layers 0 and 2
    shape = CacheShape(slots=3, max_context=4400, chunk=64)
    assert [shape.rows(config, layer) for layer in range(4)] == [96, 4400, 96, 4400]
    assert shape.tensor(config, 0) == (3, 2, 97, 32)
    short = CacheShape(slots=1, max_context=40, chunk=64)
    assert short.rows(config, 0) == 40
