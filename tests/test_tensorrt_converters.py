"""What the converters compute, on a CPU: a network whose layers are PyTorch's stands for TensorRT's.

It is as strict as TensorRT about dtypes and ranks. TensorRT's own layers run on a GPU only (test_tensorrt.py).
"""

from __future__ import annotations

import operator
from types import SimpleNamespace

import pytest
import torch

from gptoss_export.errors import BuildError
from gptoss_export.verify.metric import TOLERANCES, Error, error
from gptoss_export.targets.tensorrt.converters import CONVERTERS, Layers
from gptoss_export.targets.tensorrt.engine import _convert
from gptoss_export.targets.tensorrt.edition import installed

if installed() is None:
    pytest.skip("no TensorRT is installed", allow_module_level=True)  # which test_tensorrt needs

from test_tensorrt import CONVERSIONS, F32, BF16, _f, _i, _name, _segment_of, aten, drawn


class _Names:
    """An enumeration whose members are their names."""

    def __getattr__(self, name):
        return name


_TYPES = {
    "FLOAT": "float32", "BF16": "bfloat16", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "BOOL": "bool",
}  # fmt: skip
TRT = SimpleNamespace(
    DataType=SimpleNamespace(**{name: getattr(torch, dtype) for name, dtype in _TYPES.items()}),
    Weights=torch.from_numpy, ElementWiseOperation=_Names(), UnaryOperation=_Names(), ReduceOperation=_Names(),
    MatrixOperation=_Names(), GatherMode=_Names(),
)  # fmt: skip
ELEMENTWISE = {
    "SUM": operator.add, "SUB": operator.sub, "PROD": operator.mul, "GREATER": operator.gt, "EQUAL": operator.eq,
    "OR": operator.or_, "AND": operator.and_, "MIN": torch.minimum, "MAX": torch.maximum,
    "FLOOR_DIV": lambda a, b: torch.div(a, b, rounding_mode="floor"),
}  # fmt: skip
UNARY = {"COS": torch.cos, "SIN": torch.sin, "RECIP": torch.reciprocal, "SQRT": torch.sqrt, "EXP": torch.exp, "LOG": torch.log}
REDUCE = {"SUM": torch.sum, "AVG": torch.mean, "MAX": torch.amax, "MIN": torch.amin}


class _Layer:
    """Computes when it is asked, from what was set on it by then."""

    def __init__(self, compute):
        self._compute = compute

    def get_output(self, index):
        assert index == 0
        return self._compute(self)


class _Network:
    def add_cast(self, x, dtype):
        return _Layer(lambda layer: x.to(dtype))

    def add_constant(self, shape, weights):
        return _Layer(lambda layer: weights.reshape(tuple(shape)))

    def add_shuffle(self, x):
        return _Layer(lambda layer: x.reshape(layer.reshape_dims))

    def add_elementwise(self, a, b, name):
        assert a.dtype == b.dtype and a.dim() == b.dim(), (name, a.dtype, b.dtype, a.shape, b.shape)
        return _Layer(lambda layer: ELEMENTWISE[name](a, b))

    def add_unary(self, x, name):
        return _Layer(lambda layer: UNARY[name](x))

    def add_reduce(self, x, name, axes, keepdim):
        dims = [dim for dim in range(x.dim()) if axes >> dim & 1]
        return _Layer(lambda layer: REDUCE[name](x, dims, keepdim).to(x.dtype))

    def add_select(self, condition, yes, no):
        assert condition.dtype == torch.bool and yes.dtype == no.dtype and condition.dim() == yes.dim() == no.dim()
        return _Layer(lambda layer: torch.where(condition, yes, no))

    def add_slice(self, x, starts, shape, strides):
        def compute(layer):
            places = [torch.arange(size) * stride + start for start, size, stride in zip(starts, shape, strides, strict=True)]
            return x[torch.meshgrid(*places, indexing="ij")]

        return _Layer(compute)

    def add_matrix_multiply(self, a, flag_a, b, flag_b):
        assert a.dtype == b.dtype and (flag_a, flag_b) == ("NONE", "TRANSPOSE")
        return _Layer(lambda layer: a @ b.mT)

    def add_gather(self, x, indices, axis):
        return _Layer(lambda layer: x[indices] if axis == 0 else None)

    def add_gather_v2(self, x, indices, mode):
        assert mode == "ELEMENT"
        return _Layer(lambda layer: x.gather(layer.axis, indices))

    def add_concatenation(self, tensors):
        return _Layer(lambda layer: torch.cat(tensors, layer.axis))

    def add_softmax(self, x):
        return _Layer(lambda layer: x.softmax(layer.axes.bit_length() - 1))


def _computed(function, given):
    """What the converters make of the traced function's nodes, for these tensors."""
    segment = _segment_of(function, tuple(given))
    known = {node: given[int(node.name.removeprefix("arguments_"))] for node in segment.inputs}
    layers = Layers(TRT, _Network())
    for node in segment.nodes:
        known[node] = _convert(layers, node, known, SimpleNamespace(text=lambda: ""))
    return [known[node] for node in segment.outputs]


@pytest.mark.parametrize(("target", "function", "arguments"), CONVERSIONS, ids=_name)
def test_values(target, function, arguments):
    """Few different values, so that sort and argmax meet equals."""
    given, wanted = drawn(function, arguments)
    for found, want in zip(_computed(function, given), wanted, strict=True):
        assert found.dtype == want.dtype
        found_error = error(found.double(), want.double())
        assert found_error.within(TOLERANCES.get(want.dtype, Error(0.0, 0.0))), found_error


def test_indices_stay_in_range_beside_nan():
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
        (lambda x: aten.ge.Scalar(x, 2.5), (_i(5),), r"ge.*the number 2.5 beside a tensor of torch.int64"),
        (lambda x: aten.ge.Scalar(x, float("inf")), (_i(5),), "ge.*the number inf"),
        (lambda x: x * 2, (_i(5).to(torch.uint8),), r"mul.*reads arguments_0, of uint8"),
        (lambda x: x.to(F32) * 2, (_i(5).to(torch.uint8),), r"reads arguments_0, of uint8"),
        (lambda x: x.to(torch.float64), (_f(5),), r"to.*KeyError.*float64"),
    ],
)
def test_refused(function, arguments, message):
    with pytest.raises(BuildError, match=message):
        _computed(function, arguments)


@pytest.mark.parametrize("raised", [KeyError, IndexError, RuntimeError, OverflowError, TypeError])
def test_what_the_bindings_raise_names_the_node(monkeypatch, raised):
    def fail(*_):
        raise raised("of the bindings")

    monkeypatch.setitem(CONVERTERS, aten.cos.default, fail)
    with pytest.raises(BuildError, match=f"cos .*no layers for it .{raised.__name__}: .*of the bindings"):
        _computed(torch.cos, [_f(3)])


def test_an_input_without_a_type_is_named():
    from gptoss_export.targets.tensorrt.engine import build_segment

    segment = _segment_of(lambda x: x * 2, (_f(3, dtype=torch.float64),))
    with pytest.raises(BuildError, match="input arguments_0 is torch.float64"):
        build_segment(segment, installed(), "sm_89", on_this_gpu=False)
