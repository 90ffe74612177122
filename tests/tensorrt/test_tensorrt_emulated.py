"""A whole schedule, emulated, computes what the traced program computes.

Engines need a GPU. What they and the kernels are given is checked without one: emulate_schedule.py carries out every
schedule step with the references that the runner binds.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorrt_helpers import SIZES, lowered
from torch import nn
from torch.utils import _pytree

from gptoss_export.artifact.calls import Role, TensorSpec
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compiler.export import TracedProgram
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.model.mxfp4 import interleave
from gptoss_export.model.parameters import is_mxfp4_blocks
from gptoss_export.targets.tensorrt.memory_plan import bound_tensors, plan_memory
from gptoss_export.targets.tensorrt.partition import Segment, partition
from gptoss_export.verification.metric import TOLERANCES, deviation

pytest.importorskip("triton", reason="triton is not installed")

EMULATE = Path(__file__).with_name("emulate_schedule.py")


def _recipe(program: TracedProgram) -> dict[str, Any]:
    """A program's schedule steps in a form that another process can carry out."""
    parts = partition(program.exported, program.name)
    plan = plan_memory(program.exported, parts)

    def tensor(node: torch.fx.Node) -> tuple[Any, ...]:
        value = node.meta["val"]
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)  # caches have any number of pages
        return dataclasses.astuple(plan.references[node]), shape, value.dtype

    steps: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Segment):
            tensors = [tensor(node) for node in bound_tensors(part)]
            steps.append({"segment": _module(part), "tensors": tensors, "inputs": len(part.inputs)})
            continue
        kernel = part.kernel.fn if hasattr(part.kernel, "configs") else part.kernel
        arguments = {name: tensor(value) if name in part.tensors else value for name, value in part.arguments.items()}
        steps.append(
            {
                "kernel": (kernel.__module__, kernel.__name__),
                "arguments": arguments,
                "tensors": list(part.tensors),
                "grid": part.grid,
            }
        )
    outputs = [(item.shape, torch_dtype(item.dtype)) for item in program.signature.outputs]
    return {"arena": plan.arena, "steps": steps, "outputs": outputs}


def _module(segment: Segment) -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    copies = {node: graph.placeholder(f"in{index}") for index, node in enumerate(segment.inputs)}
    for node in segment.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta.clear()
    graph.output(tuple(copies[node] for node in segment.outputs))
    return torch.fx.GraphModule(nn.Module(), graph)


def _fill(spec: TensorSpec) -> torch.Tensor:
    dtype = torch_dtype(spec.dtype)
    random = torch.Generator().manual_seed(sum(map(ord, spec.name)))
    slots, width = SIZES.table
    if spec.role == Role.CACHE:
        return torch.zeros(spec.sizes(1 + slots * width), dtype=dtype)
    if spec.role == Role.TABLE:
        return 1 + torch.randperm(slots * width, generator=random).view(slots, width).to(dtype)
    if spec.name.endswith("_scales"):
        return torch.randint(118, 123, spec.shape, dtype=torch.uint8, generator=random)
    if dtype == torch.uint8:
        return torch.randint(0, 256, spec.shape, dtype=torch.uint8, generator=random)
    values = torch.randn(spec.shape, generator=random)
    return (1 + 0.1 * values if "norm" in spec.name else values * spec.shape[-1] ** -0.5).to(dtype)


def _calls() -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Two chunks, the second padded, past the window and around the ring; steps with and without an idle sequence."""
    random = torch.Generator().manual_seed(1)

    def data(tokens: int, positions: list[int], slots: list[int]) -> dict[str, torch.Tensor]:
        return {
            "tokens": torch.randint(0, PRESETS["tiny"].vocab_size, (tokens,), generator=random),
            "positions": torch.tensor(positions),
            "slots": torch.tensor(slots),
        }

    chunks = [data(16, [*range(24, 40)], [1]), data(16, [*range(40, 51), *[-1] * 5], [1])]
    steps = [data(2, positions, [0, 1]) for positions in ([-1, 51], [0, 52])]
    hidden = {"hidden": torch.randn((1, PRESETS["tiny"].hidden_size), generator=random)}
    return [*(("prefill_16", call) for call in chunks), *(("decode_2", step) for step in steps), ("unembed_1", hidden)]


def _run_traced(program: TracedProgram, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    inputs = [tensors[spec.name] for spec in program.signature.inputs]
    arguments, options = _pytree.tree_unflatten(inputs, program.exported.call_spec.in_spec)
    results = program.exported.module(check_guards=False)(*arguments, **options)
    return [value.clone() for value in _pytree.tree_leaves(results)]


def test_schedule_is_the_program(tmp_path):
    programs = {
        traced.name: (traced, after) for traced, after in lowered(torch.float32, layers=2)
    }  # a layer of each kind
    shared = {
        spec.name: _fill(spec)
        for traced, _ in programs.values()
        for spec in traced.signature.inputs
        if spec.role != Role.DATA
    }
    work = tmp_path / "work.pt"
    torch.save(
        {
            "recipes": {name: _recipe(after) for name, (_, after) in programs.items()},
            "inputs": {name: [spec.name for spec in traced.signature.inputs] for name, (traced, _) in programs.items()},
            "shared": {name: interleave(value) if is_mxfp4_blocks(name) else value for name, value in shared.items()},
            "calls": _calls(),
        },
        work,
    )
    expected = [
        _run_traced(programs[name][0], data | shared) for name, data in _calls()
    ]  # writes the caches in `shared`
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, EMULATE, work], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = torch.load(work.with_suffix(".out"))
    for (name, _), actual, wanted in zip(_calls(), found["results"], expected, strict=True):
        for got, want in zip(actual, wanted, strict=True):
            if got.dtype == torch.int64:
                assert torch.equal(got, want), name
                continue
            rows = slice(0, 11) if name == "prefill_16" else slice(None)  # the rest may be padding
            if name == "decode_2":
                rows = slice(1, 2)  # the sequence that is never idle
            distance = deviation(got[rows], want[rows])
            assert distance.within(TOLERANCES[torch.float32]), (name, distance)
    caches = [name for name in shared if "_cache." in name]
    assert len(caches) == 4
    for name in caches:
        distance = deviation(found["shared"][name][:, :, :-1], shared[name][:, :, :-1])
        assert distance.within(TOLERANCES[torch.float32]), (name, distance)
