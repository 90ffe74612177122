"""The C declarations in a header of torch, as types of ctypes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

NUMBERS = {
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "size_t": ctypes.c_size_t, "uint8_t": ctypes.c_uint8,
    "bool": ctypes.c_bool, "char": ctypes.c_char, "AOTITorchError": ctypes.c_int32, "AOTIRuntimeError": ctypes.c_int32,
}  # fmt: skip


def declarations(header: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The result and the arguments of each exported function."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", header, flags=re.S)
    found = {}
    for match in re.finditer(r"(?:AOTI_TORCH_EXPORT|AOTI_API)\s+(\w+)\s+(\w+)\s*\(([^)]*)\)\s*;", text):
        result, name, arguments = match.groups()
        listed = [_type(argument) for argument in arguments.split(",") if argument.strip()]
        found[name] = _type(result + " result"), tuple(listed)
    return found


def same(declared: Any, found: Any) -> bool:
    """Whether a declaration passes what a header wants. A handle, and what a function writes one to, are addresses."""
    return _reduced(declared) == _reduced(found)


def _reduced(kind: Any) -> Any:
    pointed = getattr(kind, "_type_", None) if isinstance(kind, type) and issubclass(kind, ctypes._Pointer) else None
    if kind in (ctypes.c_char_p,):
        return ("pointer", ctypes.c_char)
    return kind if pointed is None else ("pointer", _reduced(pointed))


def _type(argument: str) -> Any:
    words = argument.replace("*", " * ").replace("const", " ").split()
    stars = words.count("*")
    kind = words[0]
    base: Any
    if kind == "void":
        base, stars = ctypes.c_void_p, stars - 1
    elif kind in NUMBERS:
        base = NUMBERS[kind]
    elif kind.endswith("Handle"):
        base = ctypes.c_void_p
    else:
        return None
    for _ in range(stars):
        base = ctypes.POINTER(base)
    return base


def wrong_declarations(declared: Mapping[str, tuple[Any, ...]], header: str) -> list[str]:
    """The declared functions that a header has not, or has with other types."""
    found = declarations(header)
    return [
        name
        for name, arguments in declared.items()
        if name not in found
        or found[name][0] is not ctypes.c_int32
        or len(arguments) != len(found[name][1])
        or not all(map(same, arguments, found[name][1]))
    ]
