"""Which rows a write to the KV cache touches: the rows of its positions, the scratch page for padding, nothing else.
And which layers share the tensors of the pool."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.model.config import FULL, SLIDING
from gptoss_export.model.kv_cache import PAGE, live_pages, page_bytes, pages_for, pool_tensor, pool_tensors
from gptoss_export.model.ops import OPS

HEADS, SIZE, DIM = 2, 8, 16
UNTOUCHED = -7.0


def test_writes_touch_their_rows_alone() -> None:
    """Each cache lies between guard pages, so that a write in front of it or behind it shows."""
    guarded = [torch.full((6 + 2, HEADS, SIZE, DIM), UNTOUCHED) for _ in range(2)]
    k_cache, v_cache = (buffer[1:-1] for buffer in guarded)
    pages = torch.tensor([[5, 3], [1, 1], [2, 4]], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, -1], [SIZE - 1, SIZE, SIZE + 1, -1]])  # padded; the second one goes on
    slots = torch.tensor([2, 0])
    key, value = torch.rand(2, positions.numel(), HEADS, DIM)
    OPS["kv_write"].reference(k_cache, v_cache, pages, key, value, slots, positions)

    written = {(2, 0): 0, (2, 1): 1, (2, 2): 2, (5, SIZE - 1): 4, (3, 0): 5, (3, 1): 6}  # (page, row): token
    for buffer, tokens in zip(guarded, (key, value), strict=True):
        expected = torch.full_like(buffer, UNTOUCHED)
        for (page, row), token in written.items():
            expected[1 + page, :, row] = tokens[token]
        scratch = buffer[1, :, 0]
        assert any(torch.equal(scratch, tokens[token]) for token in (3, 7))  # all padding goes to one row
        expected[1, :, 0] = scratch
        assert torch.equal(buffer, expected)


def test_live_pages_leave_out_the_scratch_page() -> None:
    cache = torch.zeros(3, HEADS, SIZE, DIM)
    live_pages(cache).fill_(1)
    assert cache[1:].all() and not cache[0].any()


@pytest.mark.parametrize(("positions", "pages"), [(0, 0), (1, 1), (PAGE, 1), (PAGE + 1, 2), (10 * PAGE, 10)])
def test_pages_of_positions(positions: int, pages: int) -> None:
    assert pages_for(positions) == pages


def test_layers_of_one_kind_have_tensors_of_their_own() -> None:
    tiny = PRESETS["tiny"]
    assert [pool_tensor(tiny, layer) for layer in range(4)] == [0, 0, 1, 1] and pool_tensors(tiny) == 2
    uneven = dataclasses.replace(tiny, layer_types=(FULL, FULL, SLIDING, FULL))
    assert [pool_tensor(uneven, layer) for layer in range(4)] == [0, 1, 0, 2] and pool_tensors(uneven) == 3


def test_a_page_of_the_20b() -> None:
    """12 layers of each kind, 8 heads of 64 numbers, keys and values, bfloat16."""
    assert page_bytes(PRESETS["20b"], 2) == 12 * 2 * 8 * 64 * 64 * 2
