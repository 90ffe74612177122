"""The grouping of pairs by expert, which is a part of the experts' kernels, against the same in plain Python.

It runs in Triton's interpreter, in a process of its own (test_interpreted.py says why), and on a GPU.
"""

from __future__ import annotations

import json
import traceback
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter_process import found_by_interpreter

pytest.importorskip("triton")

# label: (the expert of each pair, experts, rows of a block)
GROUPINGS: dict[str, tuple[list[int], int, int]] = {
    "one pair": ([2], 4, 16),
    "no pairs": ([], 3, 16),
    "all pairs padding": ([-1] * 40, 5, 16),
    "one expert has all pairs, in several tiles": ([6] * 2500, 7, 128),
    "the last expert has all pairs, whole blocks": ([3] * 64, 4, 32),
    "40 experts, some without pairs, some padding": ([i * i % 41 - 1 for i in range(1035)], 40, 32),
    "a chunk of the 20b": ([i * i // 7 % 32 for i in range(4 * 512)], 32, 64),
}
DRAWN = "drawn by hypothesis"


def check_grouping(device: torch.device, chosen: list[int], experts: int, rows: int) -> None:
    """The blocks of each expert in turn, pairs in ascending order, then -1; -1 for blocks that are not needed."""
    from gptoss_plugins.grouping import group_pairs

    indices = torch.tensor(chosen, dtype=torch.int64, device=device)
    expert_of_block, pair_of_row = group_pairs(indices, experts, rows)
    assert expert_of_block.dtype == pair_of_row.dtype == torch.int32
    assert pair_of_row.numel() == expert_of_block.numel() * rows
    owners, pairs = [], []
    for expert in range(experts):
        mine = [pair for pair, owner in enumerate(chosen) if owner == expert]
        blocks = -(-len(mine) // rows)
        owners += [expert] * blocks
        pairs += mine + [-1] * (blocks * rows - len(mine))
    unused = expert_of_block.numel() - len(owners)
    assert expert_of_block.tolist() == owners + [-1] * unused
    assert pair_of_row.tolist()[: len(pairs)] == pairs  # the other rows are not written


@st.composite
def groupings(draw: st.DrawFn) -> tuple[list[int], int, int]:
    experts = draw(st.integers(1, 40))
    chosen = draw(st.lists(st.integers(-1, experts - 1), max_size=200))
    return chosen * draw(st.sampled_from((1, 1, 13))), experts, draw(st.sampled_from((16, 32, 128)))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    return found_by_interpreter(__file__)


@pytest.mark.parametrize("label", [*GROUPINGS, DRAWN])
def test_interpreted_pairs_are_grouped(interpreted: dict[str, str], label: str) -> None:
    assert interpreted[label] == "grouped"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
@pytest.mark.parametrize("label", GROUPINGS)
def test_pairs_are_grouped(label: str) -> None:
    check_grouping(torch.device("cuda"), *GROUPINGS[label])


def _interpret() -> None:
    """Print "grouped" or the traceback of each grouping, by label."""
    cpu = torch.device("cpu")

    @given(groupings())
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    def drawn(grouping: tuple[list[int], int, int]) -> None:
        check_grouping(cpu, *grouping)

    checks = {label: partial(check_grouping, cpu, *grouping) for label, grouping in GROUPINGS.items()}
    found = {}
    for label, check in {**checks, DRAWN: drawn}.items():
        try:
            check()
            found[label] = "grouped"
        except AssertionError:
            found[label] = traceback.format_exc()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    _interpret()
