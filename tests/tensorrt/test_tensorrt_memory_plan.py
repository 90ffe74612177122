"""Which memory each tensor of a program gets."""

from __future__ import annotations

import math

import pytest
from tensorrt_helpers import exported_function, floats, lowered

from gptoss_export.errors import LoweringError
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.targets.tensorrt.memory_plan import bound_tensors, plan_memory
from gptoss_export.targets.tensorrt.partition import fixed_shape, partition
from gptoss_export.targets.tensorrt.schedule import ARENA, INPUT, OUTPUT

pytest.importorskip("triton", reason="triton is not installed")


def test_tensors_that_live_at_the_same_time_do_not_overlap():
    for _, program in lowered():
        parts = partition(program.exported, program.name)
        plan = plan_memory(program.exported, parts)
        lives: dict = {}
        for index, part in enumerate(parts):
            for node in bound_tensors(part):
                lives.setdefault(node, []).append(index)
        extent = {}
        for node in lives:
            reference = plan.references[node]
            if reference.place == ARENA:
                value = node.meta["val"]
                extent[node] = reference.value, reference.value + value.numel() * value.element_size()
        items = {INPUT: program.signature.inputs, OUTPUT: program.signature.outputs}
        for node in lives:  # an input or a result is read and written as a whole, which loading relies on
            place, value = plan.references[node].place, node.meta["val"]
            if place != ARENA:
                item = items[place][plan.references[node].value]
                held = math.prod(item.sizes(free=1)) * torch_dtype(item.dtype).itemsize
                assert math.prod(fixed_shape(node)) * value.element_size() == held, (node, item)
        assert all(end <= plan.arena and begin % 256 == 0 for begin, end in extent.values())
        for one in extent:
            for other in extent:
                together = min(lives[one]) <= max(lives[other]) and min(lives[other]) <= max(lives[one])
                apart = extent[one][1] <= extent[other][0] or extent[other][1] <= extent[one][0]
                assert one is other or apart or not together, (one, other)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x + 1, x), "result 1 .* shares memory with input 0"),
        (lambda x: ((y := x + 1), y.view(-1)), "result 1 .* shares memory with output 0"),
    ],
)
def test_results_that_share_memory_are_refused(function, message):
    exported = exported_function(function, (floats(2, 3),))
    with pytest.raises(LoweringError, match=message):
        plan_memory(exported, partition(exported, "test"))
