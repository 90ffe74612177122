"""Reads model.onnx without the package onnx: what a model stores about itself, and where the data of its tensors lies.

onnxruntime opens any file that a tensor names. So a model is read here first, by the wire format of protocol buffers
and the field numbers of onnx.proto. Only the fields that a build writes are accepted, and at most once where onnx.proto
has one value. So there is no place for a tensor that this reader does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_DEEPEST = 32  # messages inside of each other; a build writes at most 16
_EXTERNAL = 1  # of data_location: the data lies in another file

Value: TypeAlias = int | bytes


@dataclass(frozen=True)
class ExternalData:
    """A region of a file: its name relative to the model, the first byte and the number of bytes."""

    file: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.length} bytes at {self.offset} of {self.file!r}"


@dataclass(frozen=True)
class Initializer:
    """A weight of the model. type: a number of ONNX's TensorProto.DataType. data: None where the model holds it."""

    type: int
    shape: tuple[int, ...]
    data: ExternalData | None


@dataclass
class ModelContents:
    """properties: the model's metadata_props. initializers: those of the main graph, by name."""

    properties: dict[str, str] = field(default_factory=dict)
    initializers: dict[str, Initializer] = field(default_factory=dict)


def read_model(data: bytes) -> ModelContents:
    """What `data`, a model.onnx, holds.

    Raises ValueError for bytes that are no such model, for fields that no build writes, and for a tensor outside of the
    main graph's initializers whose data lies in another file.
    """
    found = ModelContents()
    fields = _fields(data, "model")
    found.properties = _entries(fields, "metadata_props")
    for graph in fields["graph"]:
        for tensor in _graph(graph, 1)["initializer"]:
            name, initializer = _initializer(tensor)
            if name in found.initializers:
                raise ValueError(f"initializer {name!r}: found twice")
            found.initializers[name] = initializer
    for function in fields["functions"]:
        _check_nodes(_fields(function, "function"), 1)
    return found


# Fields by number: name, wire type, whether there may be several.
_ENTRY: dict[int, tuple[str, int, bool]] = {1: ("key", _BYTES, False), 2: ("value", _BYTES, False)}
_MESSAGES: dict[str, dict[int, tuple[str, int, bool]]] = {
    "entry": _ENTRY,
    "model": {
        1: ("ir_version", _VARINT, False),
        2: ("producer_name", _BYTES, False),
        3: ("producer_version", _BYTES, False),
        4: ("domain", _BYTES, False),
        5: ("model_version", _VARINT, False),
        6: ("doc_string", _BYTES, False),
        7: ("graph", _BYTES, False),
        8: ("opset_import", _BYTES, True),
        14: ("metadata_props", _BYTES, True),
        25: ("functions", _BYTES, True),
    },
    "graph": {
        1: ("node", _BYTES, True),
        2: ("name", _BYTES, False),
        5: ("initializer", _BYTES, True),
        10: ("doc_string", _BYTES, False),
        11: ("input", _BYTES, True),
        12: ("output", _BYTES, True),
        13: ("value_info", _BYTES, True),
    },
    "function": {
        1: ("name", _BYTES, False),
        4: ("input", _BYTES, True),
        5: ("output", _BYTES, True),
        6: ("attribute", _BYTES, True),
        7: ("node", _BYTES, True),
        8: ("doc_string", _BYTES, False),
        9: ("opset_import", _BYTES, True),
        10: ("domain", _BYTES, False),
    },
    "node": {
        1: ("input", _BYTES, True),
        2: ("output", _BYTES, True),
        3: ("name", _BYTES, False),
        4: ("op_type", _BYTES, False),
        5: ("attribute", _BYTES, True),
        6: ("doc_string", _BYTES, False),
        7: ("domain", _BYTES, False),
    },
    "attribute": {
        1: ("name", _BYTES, False),
        2: ("f", _FIXED32, False),
        3: ("i", _VARINT, False),
        4: ("s", _BYTES, False),
        5: ("t", _BYTES, False),
        6: ("g", _BYTES, False),
        7: ("floats", _FIXED32, True),
        8: ("ints", _VARINT, True),
        9: ("strings", _BYTES, True),
        13: ("doc_string", _BYTES, False),
        20: ("type", _VARINT, False),
        21: ("ref_attr_name", _BYTES, False),
    },
    "tensor": {
        1: ("dims", _VARINT, True),
        2: ("data_type", _VARINT, False),
        4: ("float_data", _FIXED32, True),
        5: ("int32_data", _VARINT, True),
        7: ("int64_data", _VARINT, True),
        8: ("name", _BYTES, False),
        9: ("raw_data", _BYTES, False),
        12: ("doc_string", _BYTES, False),
        13: ("external_data", _BYTES, True),
        14: ("data_location", _VARINT, False),
    },
}
_PACKED = {_VARINT, _FIXED32}  # wire types whose repeated values may also come as one field of bytes


def _graph(data: Value, depth: int) -> dict[str, list[Any]]:
    fields = _fields(data, "graph")
    _check_nodes(fields, depth)
    return fields


def _check_nodes(fields: dict[str, list[Any]], depth: int) -> None:
    """Raise ValueError where a tensor below the nodes has its data in another file."""
    if depth > _DEEPEST:
        raise ValueError(f"found more than {_DEEPEST} graphs inside of each other")
    for node in fields["node"]:
        for attribute in _fields(node, "node")["attribute"]:
            held = _fields(attribute, "attribute")
            for tensor in held["t"]:
                _check_inside(tensor)
            for graph in held["g"]:
                for tensor in _graph(graph, depth + 1)["initializer"]:
                    _check_inside(tensor)


def _check_inside(tensor: Value) -> None:
    fields = _fields(tensor, "tensor")
    if fields["external_data"] or fields["data_location"]:
        raise ValueError(f"tensor {_text(fields['name'])!r} of a node: found data in another file, expected it here")


def _initializer(tensor: Value) -> tuple[str, Initializer]:
    fields = _fields(tensor, "tensor")
    name, external = _text(fields["name"]), None
    if fields["data_location"] not in ([], [0]):
        entries = _entries(fields, "external_data")
        numbers = [entries.get(key, "") for key in ("offset", "length")]
        if fields["data_location"] != [_EXTERNAL] or entries.keys() != {"location", "offset", "length"}:
            raise ValueError(f"initializer {name!r}: found data at {entries}, expected location, offset and length")
        if not all(number.isdecimal() and number.isascii() and len(number) < 20 for number in numbers):
            raise ValueError(f"initializer {name!r}: found offset and length {numbers}, expected numbers")
        external = ExternalData(entries["location"], *map(int, numbers))
    elif fields["external_data"]:
        raise ValueError(f"initializer {name!r}: found a place in another file and data in the model")
    (kind,) = fields["data_type"] or [0]
    return name, Initializer(kind, tuple(fields["dims"]), external)


def _entries(fields: dict[str, list[Any]], name: str) -> dict[str, str]:
    """A repeated field of keys and values."""
    found: dict[str, str] = {}
    for item in fields[name]:
        entry = _fields(item, "entry")
        key = _text(entry["key"])
        if key in found:
            raise ValueError(f"{name}: found the key {key!r} twice")
        found[key] = _text(entry["value"])
    return found


def _text(values: list[bytes]) -> str:
    return values[0].decode("utf-8") if values else ""


def _fields(data: Value, message: str) -> dict[str, list[Any]]:
    """The values of a message's fields, by name; an empty list for a field that is not there."""
    assert isinstance(data, bytes)
    known = _MESSAGES[message]
    found: dict[str, list[Any]] = {name: [] for name, _, _ in known.values()}
    for number, wire, value in _values(data):
        if number not in known:
            raise ValueError(f"{message}: found field {number}, which no build writes")
        name, expected, many = known[number]
        if many and expected in _PACKED and wire == _BYTES:
            assert isinstance(value, bytes)
            found[name] += _packed(value, expected)
            continue
        if wire != expected:
            raise ValueError(f"{message}: {name} has wire type {wire}, expected {expected}")
        if found[name] and not many:
            raise ValueError(f"{message}: found {name} twice")
        found[name].append(value)
    return found


def _packed(data: bytes, wire: int) -> Iterator[Value]:
    position = 0
    while position < len(data):
        value, position = _READERS[wire](data, position)
        yield value


def _values(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """The fields of a message, in order: number, wire type and value."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire not in _READERS:
            raise ValueError(f"found wire type {wire}, expected one of {', '.join(map(str, _READERS))}")
        value, position = _READERS[wire](data, position)
        yield key >> 3, wire, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of 64 bits, and the position behind it."""
    value = 0
    for index in range(10):
        if position + index >= len(data):
            raise ValueError("ends in the middle of a number")
        byte = data[position + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    raise ValueError("found a number of more than 10 bytes")


def _bytes(data: bytes, position: int) -> tuple[bytes, int]:
    length, start = _varint(data, position)
    return _exactly(length, data, start)


def _exactly(length: int, data: bytes, start: int) -> tuple[bytes, int]:
    if start + length > len(data):
        raise ValueError(f"ends in the middle of a field of {length} bytes")
    return data[start : start + length], start + length


_READERS: dict[int, Callable[[bytes, int], tuple[Value, int]]] = {
    _VARINT: _varint,
    _FIXED64: lambda data, position: _exactly(8, data, position),
    _BYTES: _bytes,
    _FIXED32: lambda data, position: _exactly(4, data, position),
}
