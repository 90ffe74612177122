"""How a program is partitioned into segments and launches."""

from __future__ import annotations

import pytest
import torch
from tensorrt_helpers import LAYERS, exported_function, floats, lowered
from torch import nn

from gptoss_export.targets.tensorrt.engine import missing_converters
from gptoss_export.targets.tensorrt.partition import Launch, Segment, partition

pytest.importorskip("triton", reason="triton is not installed")


def test_layers_share_engines():
    for _, program in lowered():
        parts = partition(program.exported, program.name)
        segments = [part.key for part in parts if isinstance(part, Segment)]
        launches = [part for part in parts if isinstance(part, Launch)]
        if program.name.startswith("unembed"):
            assert len(segments) == 1 and not launches
            continue
        # Before the first attention, between attention and experts, between layers, after the last.
        assert len(segments) == 2 * LAYERS + 1 and len(set(segments)) == 4
        assert len(launches) >= 5 * LAYERS


def test_a_large_product_of_one_row_begins_a_segment():
    """What makes the row is computed once. Several rows, and few weights, stay in their segment."""

    def segments(rows: int, width: int) -> int:
        exported = exported_function(
            lambda x, weight: (nn.functional.linear(x * 2, weight) + 1,),
            (torch.ones(rows, width), torch.ones(1024, width)),
        )
        return len(partition(exported, "test"))

    assert [segments(1, 1024), segments(2, 1024), segments(1, 512)] == [2, 1, 1]


def test_keys_are_of_the_structure():
    """Equal for other names of tensors, different for other ops, constants, operands, shapes and dtypes."""

    def key(function, *arguments):
        (segment,) = partition(exported_function(function, arguments), "test")
        return segment.key

    first = key(lambda x, y: x * 2 + y, floats(3), floats(3))
    assert first == key(lambda x, y: y * 2 + x, floats(3), floats(3))
    others = [
        key(lambda x, y: x * 3 + y, floats(3), floats(3)),
        key(lambda x, y: x * 2 - y, floats(3), floats(3)),
        key(lambda x, y: x * 2 + x, floats(3), floats(3)),
        key(lambda x, y: x * 2 + y, floats(4), floats(4)),
        key(lambda x, y: x * 2 + y, floats(3, dtype=torch.bfloat16), floats(3, dtype=torch.bfloat16)),
    ]
    assert first not in others


def test_an_op_without_converter_is_named():
    (segment,) = partition(exported_function(lambda x: torch.erf(x) + 1, (floats(2, 3),)), "test")
    assert missing_converters(segment) == ["erf: aten.erf.default"]
