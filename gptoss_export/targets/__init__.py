"""The targets. A new one is one new folder here and one line below."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import UsageError
from .target import Availability, CompileJob, Compilation, Compiler, Loader, NoOptions, Table

TARGETS = (
    "aoti",
    "tensorrt",
    "onnx",
)


def compiler(name: str) -> Compiler:
    """The compiler of a target, which is imported now: not every target needs the same packages.

    Raises UsageError where there is no such target, or where a package that it needs is missing.
    """
    return _module(name, "compile").COMPILER


def loader(name: str) -> Loader:
    """The loader of a target. Raises UsageError as `compiler`."""
    return _module(name, "load").LOADER


def options_class(name: str) -> type:
    """The options of a target, a frozen dataclass. Imports nothing but its declaration."""
    return _module(name, "options").Options


def _module(name: str, half: str) -> ModuleType:
    if name not in TARGETS:
        raise UsageError(f"--target {name}: expected {', '.join(TARGETS)}")
    try:
        return importlib.import_module(f"{__name__}.{name}.{half}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == __name__.split(".")[0]:
            raise  # a module of this project is missing: a bug, not a missing package
        raise UsageError(f"target {name} cannot be used: package {error.name} is not installed") from error


__all__ = [
    "TARGETS",
    "Availability",
    "Compilation",
    "CompileJob",
    "Compiler",
    "Loader",
    "NoOptions",
    "Table",
    "compiler",
    "loader",
    "options_class",
]
