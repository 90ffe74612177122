"""A reader and a writer of safetensors of their own: what a file says, without the library that is tested."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1, "F64": 8, "I64": 8, "I32": 4}


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of a file, and where its tensors begin. Raises ValueError."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError("no header")
    return json.loads(data[8 : 8 + size]), 8 + size


def read_tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a file. Raises ValueError, KeyError or TypeError where it is none."""
    data = path.read_bytes()
    header, start = read_header(data)
    found = {}
    for name, item in header.items():
        if name != "__metadata__":
            first, last = item["data_offsets"]
            found[name] = Stored(item["dtype"], tuple(item["shape"]), data[start + first : start + last])
    return found


def write_tensors(path: Path, tensors: dict[str, Stored]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, item in tensors.items():
        end = offset + len(item.data)
        header[name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join(item.data for item in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def resized(parts: list[Stored], shape: tuple[int, ...]) -> Stored:
    """The bytes of stored parts, cut or repeated to fill another shape."""
    data = b"".join(part.data for part in parts)
    size = math.prod(shape) * SIZES[parts[0].dtype]
    return Stored(parts[0].dtype, shape, (data * (size // max(1, len(data)) + 1))[:size])
