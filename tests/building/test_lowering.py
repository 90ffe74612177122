"""Programs as graphs: their inputs are those of the signature, they hold no memory, and every op is implemented."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gptoss_export.artifact.programs import Choose, Decode, Interleave, Program, Sizes, programs_of
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers
from gptoss_export.compiler import lower as lowering
from gptoss_export.compiler.export import TracedProgram, trace
from gptoss_export.compiler.lower import (
    kernel_implementations,
    lower,
    reference_implementations,
    unchanged_implementations,
)
from gptoss_export.errors import LoweringError
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.config import ModelConfig
from gptoss_export.model.dtypes import torch_dtype

CPU = torch.device("cpu")
CONFIG = with_layers(PRESETS["tiny"], 2)
SIZES = Sizes((2,), 64, (8,))


def traced(program: Program, config: ModelConfig = CONFIG, sizes: Sizes = SIZES) -> TracedProgram:
    return trace(program, config, sizes, torch.float32, CPU)


def ops_of(program: TracedProgram) -> set[str]:
    """Names of the project's ops in the graph."""
    targets = [node.target for node in program.exported.graph.nodes]
    return {
        target.name().removeprefix("gptoss::")
        for target in targets
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "gptoss"
    }


def assert_inputs_are_the_signatures(program: TracedProgram) -> None:
    found = [node.meta["val"] for node in program.exported.graph.nodes if node.op == "placeholder"]
    inputs = program.signature.inputs
    shapes = [tuple(size if isinstance(size, int) else None for size in value.shape) for value in found]
    assert [(shape, value.dtype) for shape, value in zip(shapes, found, strict=True)] == [
        (item.shape, torch_dtype(item.dtype)) for item in inputs
    ]


@pytest.mark.parametrize("program", programs_of(SIZES, "cuda"), ids=lambda program: program.name)
def test_inputs_are_those_of_the_signature(program: Program) -> None:
    found = traced(program)
    assert_inputs_are_the_signatures(found)
    lowered = lower(found, reference_implementations())
    assert_inputs_are_the_signatures(lowered)
    assert bool(ops_of(found)) != isinstance(program, (Choose, Interleave)) and not ops_of(lowered)


def test_ops_without_an_implementation_are_named() -> None:
    decode = traced(Decode(SIZES.max_batch))
    implementations = dict(reference_implementations())
    del implementations["sink_attention"]
    with pytest.raises(LoweringError, match=r"(?s)program decode_2: ops .*gptoss\.sink_attention\.default"):
        lower(decode, implementations)


def test_ops_can_be_left_as_they_are() -> None:
    decode = traced(Decode(SIZES.max_batch))
    assert ops_of(lower(decode, unchanged_implementations())) == ops_of(decode)


def test_tracing_a_20b_takes_no_memory() -> None:
    """A program of the true shape is traced with fake tensors: no weight is ever allocated."""
    sizes = Sizes((1,), 8192, (512,))
    decode = trace(Decode(1), with_layers(PRESETS["20b"], 2), sizes, torch.bfloat16, CPU)
    placeholders = [node for node in decode.exported.graph.nodes if node.op == "placeholder"]
    assert placeholders
    assert all(isinstance(node.meta["val"], torch._subclasses.FakeTensor) for node in placeholders)
    assert not decode.exported.state_dict and not decode.exported.constants


def test_on_a_gpu_every_op_with_mxfp4_blocks_has_a_kernel_that_takes_them_interleaved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    offered = dict(kernels())
    del offered["experts"]
    offered["experts_sublayer"] = dataclasses.replace(offered["experts_sublayer"], interleaved=())
    monkeypatch.setattr(lowering, "kernels", lambda: offered)
    with pytest.raises(LoweringError) as caught:
        kernel_implementations(ConfigChooser("sm_90"))
    assert "experts: has no kernel" in str(caught.value)
    assert "experts_sublayer: its kernel declares interleaved=()" in str(caught.value)
