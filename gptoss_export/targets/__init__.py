"""The targets. A new one is one new folder here and one line below.

The folder of a target holds `compile.py` with its `COMPILER` (base_compiler.py), `load.py` with its `LOADER`
(base_loader.py), and `options.py` with its `Options`, a frozen dataclass whose fields become options of `build`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from ..errors import UsageError

TARGETS = (
    "aoti",
    "tensorrt",
    "onnx",
)


@dataclass(frozen=True)
class NoOptions:
    """The options of a target that has none."""


def options_class(name: str) -> type:
    """The options of a target. Imports nothing but their declaration."""
    return target_module(name, "options").Options


def target_module(name: str, half: str) -> ModuleType:
    """`compile`, `load` or `options` of a target.

    Raises UsageError where there is no such target, or where a package that it needs is not installed.
    """
    if name not in TARGETS:
        raise UsageError(f"--target {name}: expected {', '.join(TARGETS)}")
    try:
        return importlib.import_module(f"{__name__}.{name}.{half}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __name__.partition(".")[0]:
            raise  # a module of this project is missing: a bug, not a missing package
        raise UsageError(f"target {name} cannot be used: package {error.name} is not installed") from error
