"""Engines that TensorRT for RTX builds of single ops and of a whole program, and how a refusal is reported."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from tensorrt_conversions import CONVERSIONS, Conversion, drawn
from tensorrt_helpers import ARCH, floats, integers, lowered, plugins_of_the_model, segment_of

from gptoss_export.errors import BuildError
from gptoss_export.targets.tensorrt.contexts import Contexts
from gptoss_export.targets.tensorrt.converters import CONVERTERS
from gptoss_export.targets.tensorrt.edition import Edition, installed_edition
from gptoss_export.targets.tensorrt.engine import build_segment, build_whole, missing_converters
from gptoss_export.targets.tensorrt.layers import Layers
from gptoss_export.targets.tensorrt.memory_plan import program_inputs
from gptoss_export.targets.tensorrt.partition import Launch, Segment, partition, program_results
from gptoss_export.verification.metric import TOLERANCES, Deviation, deviation

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")

aten = torch.ops.aten


@pytest.fixture
def edition() -> Edition:
    found = installed_edition()
    assert found is not None
    return found


def _built(conversion: Conversion, edition: Edition, on_this_gpu: bool) -> tuple[Segment, bytes]:
    segment = segment_of(conversion.function, conversion.arguments)
    assert not missing_converters(segment)
    if conversion.target not in {node.target for node in segment.nodes}:
        pytest.skip("torch traces another op for it")
    return segment, build_segment(segment, edition, ARCH, on_this_gpu)


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=str)
def test_converter(conversion, edition):
    """Builds for a GPU, with the shapes and dtypes of torch, which the build compares at every node."""
    assert len(_built(conversion, edition, on_this_gpu=False)[1]) > 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")
@pytest.mark.parametrize("conversion", CONVERSIONS, ids=str)
def test_converter_on_a_gpu(conversion, edition, tmp_path):
    """Computes what torch computes."""
    segment, engine = _built(conversion, edition, on_this_gpu=True)
    device = torch.device("cuda")
    arguments, wanted = drawn(conversion)
    inputs = [arguments[int(node.name.removeprefix("arguments_"))].to(device) for node in segment.inputs]
    outputs = [torch.empty_like(item, device=device) for item in wanted]
    _run_engine(edition, engine, tmp_path, inputs, outputs)
    for found, want in zip(outputs, wanted, strict=True):
        assert found.dtype == want.dtype
        distance = deviation(found.cpu().double(), want.double())
        assert distance.within(TOLERANCES.get(want.dtype, Deviation(0.0, 0.0))), distance


def _run_engine(
    edition: Edition, engine: bytes, folder: Path, inputs: list[torch.Tensor], outputs: list[torch.Tensor]
) -> None:
    (folder / "engines").mkdir()
    (folder / "engines" / "one.engine").write_bytes(engine)
    contexts = Contexts(edition, folder, ["one"], torch.device("cuda"))  # holds the memory that its contexts work in
    contexts.allocate()
    context = contexts["one"]
    for kind, tensors in ("in", inputs), ("out", outputs):
        for index, tensor in enumerate(tensors):
            context.set_tensor_address(f"{kind}{index}", tensor.data_ptr())
    torch.cuda.synchronize()
    assert context.execute_async_v3(torch.cuda.Stream().cuda_stream)
    torch.cuda.synchronize()


def test_every_converter_is_tested():
    assert CONVERTERS.keys() - {operator.getitem} == {conversion.target for conversion in CONVERSIONS}


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            lambda x: aten.sort.stable(x, stable=True, dim=-1, descending=False),
            (floats(3, 8),),
            "sort.*only rows, descending",
        ),
        # TensorRT has no cosine of whole numbers, and says so when it is asked for the shape.
        (torch.cos, (integers(3),), "^cos .*aten.cos.default.*Int64"),
        (lambda x: x * 2, (floats(3, dtype=torch.float64),), "input arguments_0 is torch.float64.*no type"),
    ],
    ids=["by the converter", "by TensorRT", "a dtype"],
)
def test_what_is_refused_names_the_node(edition, function, arguments, message):
    with pytest.raises(BuildError, match=message):
        build_segment(segment_of(function, arguments), edition, ARCH, on_this_gpu=False)


def test_a_bug_of_a_converter_is_not_a_refusal(edition, monkeypatch):
    """A wrong call of TensorRT's Python interface raises TypeError."""
    monkeypatch.setitem(CONVERTERS, aten.cos.default, lambda layers, value, x: layers.unary("COS", None))
    with pytest.raises(TypeError, match="add_unary"):
        build_segment(segment_of(torch.cos, (floats(3),)), edition, ARCH, on_this_gpu=False)


def test_a_whole_program_as_one_network(edition):
    """What the full TensorRT is given, with constants of the results' shapes in place of plugins."""
    _, program = next(iter(lowered()))
    parts = partition(program.exported, program.name)
    launches = [part for part in parts if isinstance(part, Launch)]
    plugins = dict(zip((launch.name for launch in launches), plugins_of_the_model(ARCH), strict=False))
    kept, order = [], []

    def add_plugin(trt, network, plugin, inputs):
        assert [tuple(tensor.shape) for tensor in inputs] == [plugin.tensors[name][1] for name in plugin.inputs]
        layers = Layers(trt, network, lambda: "")
        kept.append(layers)
        order.append(plugin.function)
        outputs = [plugin.tensors[name] for name in plugin.outputs]
        return [layers.zeros(torch.int8 if dtype == torch.uint8 else dtype, shape) for dtype, shape in outputs]

    inputs, outputs = program_inputs(program.exported), program_results(program.exported)
    engine, used = build_whole(inputs, outputs, parts, plugins, add_plugin, edition, ARCH, False)
    assert len(engine) > 1000 and set(used) == set(inputs)
    assert order == [plugins[launch.name].function for launch in launches]
