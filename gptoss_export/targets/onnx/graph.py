"""Writing an ONNX graph: a growing list of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .model_proto import Initializer

OPSET = 21
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own ops
OWN = "gptoss"  # the domain of the functions of this project


class Nodes:
    """A growing list of nodes. Values are names: each method adds nodes and returns the name of its result."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix

    def add(self, op: str, *inputs: str, outputs: int | Sequence[str] = 1, domain: str = "", **attributes: Any) -> Any:
        """A node; returns the name of its output, or a list of names where it has several. '' leaves an input out.

        outputs: how many, or their names.
        """
        stem = f"{self._prefix}{op.lower()}_{len(self.nodes)}"
        names = [f"{stem}.{index}" for index in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op, inputs, names, name=stem, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """A constant of any shape."""
        return self.add("Constant", value=onnx.numpy_helper.from_array(np.asarray(value, dtype)))

    def attribute(self, name: str, kind: str) -> str:
        """The value of an attribute of the function whose body these nodes are. kind: "int" or "float"."""
        output = self.add("Constant")
        reference = onnx.AttributeProto(
            name=f"value_{kind}", ref_attr_name=name, type=getattr(onnx.AttributeProto, kind.upper())
        )
        self.nodes[-1].attribute.append(reference)
        return output

    def cast(self, value: str, dtype: int) -> str:
        """A value in another dtype, a TensorProto.DataType."""
        return self.add("Cast", value, to=dtype)

    def reshape(self, value: str, *shape: int | str) -> str:
        """A value in another shape. Sizes are numbers (0: unchanged, -1: what remains) or names of [1] int64 values."""
        if all(isinstance(size, int) for size in shape):
            return self.add("Reshape", value, self.constant(shape))
        parts = [self.constant([size]) if isinstance(size, int) else size for size in shape]
        return self.add("Reshape", value, self.add("Concat", *parts, axis=0))

    def size(self, value: str, dim: int) -> str:
        """The size of a dimension: [1] int64."""
        return self.add("Shape", value, start=dim, end=dim + 1)

    def slice(self, value: str, start: str | int, end: str | int, axis: int, step: int = 1) -> str:
        """Part of a dimension. Bounds are numbers or names of [1] int64 values."""
        ends = (self.constant([bound]) if isinstance(bound, int) else bound for bound in (start, end))
        return self.add("Slice", value, *ends, self.constant([axis]), self.constant([step]))

    def unsqueeze(self, value: str, *axes: int) -> str:
        """A value with new dimensions of size 1."""
        return self.add("Unsqueeze", value, self.constant(axes))

    def reduce(self, op: str, value: str, axis: int, keepdims: int = 0) -> str:
        """One of the Reduce operators, over one dimension."""
        return self.add(op, value, self.constant([axis]), keepdims=keepdims)


def initializer_proto(name: str, initializer: Initializer) -> TensorProto:
    """An initializer whose data lies in another file."""
    proto = TensorProto(
        name=name, data_type=initializer.type, dims=initializer.shape, data_location=TensorProto.EXTERNAL
    )
    data = initializer.data
    assert data is not None
    for key, value in {"location": data.file, "offset": data.offset, "length": data.length}.items():
        proto.external_data.add(key=key, value=str(value))
    return proto
