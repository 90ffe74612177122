"""Writing ONNX: nodes one after the other, values by name; weights stay in the files where they lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET, MICROSOFT, OWN = 21, "com.microsoft", "gptoss"
_STORED = {"F32": TensorProto.FLOAT, "BF16": TensorProto.BFLOAT16, "U8": TensorProto.UINT8}


class Nodes:
    """A list of nodes that grows; every method adds one and returns the name of its output."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix

    def add(self, op: str, *inputs: str, outputs: int | Sequence[str] = 1, domain: str = "", **attributes: Any) -> Any:
        """A node; its output's name, or a list of them. An input that is left out is ''."""
        stem = f"{self._prefix}{op.lower()}_{len(self.nodes)}"
        names = [f"{stem}.{index}" for index in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op, inputs, names, name=stem, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        return self.add("Constant", value=onnx.numpy_helper.from_array(np.asarray(value, dtype)))

    def attribute(self, name: str, kind: str) -> str:
        """The value of an attribute of the function that these nodes are the body of; kind "int" or "float"."""
        output = self.add("Constant")
        reference = onnx.AttributeProto(
            name=f"value_{kind}", ref_attr_name=name, type=getattr(onnx.AttributeProto, kind.upper())
        )
        self.nodes[-1].attribute.append(reference)
        return output

    def cast(self, value: str, dtype: int) -> str:
        return self.add("Cast", value, to=dtype)

    def reshape(self, value: str, *shape: int | str) -> str:
        """To the sizes given: numbers (0: as it was, -1: the rest), or names of [1] int64 values."""
        if all(isinstance(size, int) for size in shape):
            return self.add("Reshape", value, self.constant(shape))
        parts = [self.constant([size]) if isinstance(size, int) else size for size in shape]
        return self.add("Reshape", value, self.add("Concat", *parts, axis=0))

    def size(self, value: str, dim: int) -> str:
        """[1] int64: a dimension of a value."""
        return self.add("Shape", value, start=dim, end=dim + 1)

    def slice(self, value: str, start: str | int, end: str | int, axis: int, step: int = 1) -> str:
        ends = (self.constant([bound]) if isinstance(bound, int) else bound for bound in (start, end))
        return self.add("Slice", value, *ends, self.constant([axis]), self.constant([step]))

    def unsqueeze(self, value: str, *axes: int) -> str:
        return self.add("Unsqueeze", value, self.constant(axes))

    def reduce(self, op: str, value: str, axis: int, keepdims: int = 0) -> str:
        return self.add(op, value, self.constant([axis]), keepdims=keepdims)


class Stored:
    """Where tensors lie in the safetensors files below a folder, from the files' headers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers: dict[str, tuple[int, dict[str, Any]]] = {}

    def initializer(self, name: str, file: str, tensor: str, dtype: int | None = None) -> onnx.TensorProto:
        """A tensor of a file as an initializer that refers to it. Its bytes may be taken for another dtype's."""
        if file not in self._headers:
            with (self._folder / file).open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                self._headers[file] = 8 + length, json.loads(stream.read(length))
        start, header = self._headers[file]
        begin, end = header[tensor]["data_offsets"]
        proto = onnx.TensorProto(
            name=name, data_type=dtype or _STORED[header[tensor]["dtype"]], dims=header[tensor]["shape"],
            data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        for key, value in {"location": file, "offset": start + begin, "length": end - begin}.items():
            proto.external_data.add(key=key, value=str(value))
        return proto
