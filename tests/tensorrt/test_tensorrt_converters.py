"""What the converters compute, on a CPU, by layers of PyTorch (torch_network.py).

TensorRT's own layers run on a GPU only (test_tensorrt_engine.py).
"""

from __future__ import annotations

import pytest
import torch
from tensorrt_conversions import BF16, CONVERSIONS, aten, drawn
from tensorrt_helpers import floats, integers, segment_of
from torch_network import TRT, TorchLayer, TorchNetwork

from gptoss_export.errors import BuildError
from gptoss_export.targets.tensorrt.converters import CONVERTERS
from gptoss_export.targets.tensorrt.engine import convert_node
from gptoss_export.targets.tensorrt.layers import Layers, RefusedLayerError
from gptoss_export.verification.metric import TOLERANCES, Deviation, deviation

REPORTED = "what TensorRT said"


def _computed(function, arguments):
    """What the converters make of the traced function's nodes, for these tensors."""
    segment = segment_of(function, arguments)
    tensors = {node: arguments[int(node.name.removeprefix("arguments_"))] for node in segment.inputs}
    layers = Layers(TRT, TorchNetwork(), lambda: REPORTED)
    for node in segment.nodes:
        tensors[node] = convert_node(layers, node, tensors, lambda: REPORTED)
    return [tensors[node] for node in segment.outputs]


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=str)
def test_values(conversion):
    """Few different values, so that sort and argmax meet equal ones."""
    arguments, wanted = drawn(conversion)
    for found, want in zip(_computed(conversion.function, arguments), wanted, strict=True):
        assert found.dtype == want.dtype
        distance = deviation(found.double(), want.double())
        assert distance.within(TOLERANCES.get(want.dtype, Deviation(0.0, 0.0))), distance


def test_indices_stay_in_range_with_nan():
    """Kernels and gathers make addresses of them."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    x[0], x[1, 3], x[2, 5:] = torch.nan, torch.nan, torch.nan
    _, indices = _computed(lambda x: aten.sort.stable(x, stable=True, dim=-1, descending=True), [x])
    (top,) = _computed(lambda x: aten.argmax(x, -1), [x])
    for found in indices, top:
        assert found.min() >= 0 and found.max() < 8, found
    assert torch.equal(indices[3], x[3].sort(descending=True).indices) and top[3] == x[3].argmax()


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("operation", [torch.add, torch.sub, torch.mul], ids=lambda operation: operation.__name__)
def test_a_number_is_not_rounded_to_16_bits(operation, dtype):
    """As torch computes on a GPU; on a CPU it rounds the number for sums, and not for products."""
    x = torch.linspace(-5, 5, 999).to(dtype)
    (found,) = _computed(lambda x: operation(x, 1.0037), [x])
    assert torch.equal(found, operation(x.float(), 1.0037).to(dtype))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (lambda x: aten.ge.Scalar(x, 2.5), (integers(5),), r"ge.*the number 2.5 with a tensor of torch.int64"),
        (lambda x: aten.ge.Scalar(x, float("inf")), (integers(5),), "ge.*the number inf"),
        (lambda x: x * 2, (integers(5).to(torch.uint8),), r"mul.*reads arguments_0, of uint8"),
        (lambda x: x.to(torch.float32) * 2, (integers(5).to(torch.uint8),), r"reads arguments_0, of uint8"),
        (lambda x: x.to(torch.float64), (floats(5),), r"^to.*torch.float64, which TensorRT has no type for"),
    ],
)
def test_refused(function, arguments, message):
    with pytest.raises(BuildError, match=message):
        _computed(function, arguments)


@pytest.mark.parametrize("raised", [ValueError, RuntimeError, NotImplementedError, OverflowError])
def test_what_is_refused_by_an_exception_names_the_node(monkeypatch, raised):
    def fail(*_):
        raise raised("of the interface")

    monkeypatch.setitem(CONVERTERS, aten.cos.default, fail)
    with pytest.raises(BuildError, match=f"cos .*no layers for it .{raised.__name__}: .*of the interface.*{REPORTED}"):
        _computed(torch.cos, [floats(3)])


@pytest.mark.parametrize("raised", [AttributeError, TypeError, KeyError, IndexError, AssertionError])
def test_a_bug_of_a_converter_is_not_a_refusal(monkeypatch, raised):
    def fail(*_):
        raise raised("a bug")

    monkeypatch.setitem(CONVERTERS, aten.cos.default, fail)
    with pytest.raises(raised, match="a bug"):
        _computed(torch.cos, [floats(3)])


@pytest.mark.parametrize("layer", [None, TorchLayer(lambda layer: None)], ids=["no layer", "no output"])
def test_a_layer_that_is_not_made_names_the_node(monkeypatch, layer):
    """TensorRT's Python interface returns None for it."""
    monkeypatch.setattr(TorchNetwork, "add_unary", lambda self, x, name: layer)
    with pytest.raises(BuildError, match=f"^cos .aten.cos.default.: TensorRT .*{REPORTED}") as caught:
        _computed(torch.cos, [floats(3)])
    assert isinstance(caught.value.__cause__, RefusedLayerError)


def test_another_shape_or_dtype_than_torch_names_the_node(monkeypatch):
    monkeypatch.setitem(CONVERTERS, aten.cos.default, lambda layers, value, x: layers.reshape(x, (3, 1)))
    with pytest.raises(BuildError, match=r"^cos .*TensorRT gives .*\(3, 1\).*expected .*\(3,\)"):
        _computed(torch.cos, [floats(3)])
    monkeypatch.setitem(CONVERTERS, aten.cos.default, lambda layers, value, x: layers.cast(x, BF16))
    with pytest.raises(BuildError, match=r"^cos .*TensorRT gives .*bfloat16.*expected .*float32"):
        _computed(torch.cos, [floats(3)])
