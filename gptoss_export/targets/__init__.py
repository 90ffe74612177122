"""The targets. A new one is one new file here and one line below."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache

from ..errors import UsageError
from .target import Availability, Callables, Plan, Table, Target

_CLASSES = {"aoti": "Aoti", "tensorrt": "TensorRT", "onnx": "Onnx"}


class _Targets(Mapping[str, Target]):
    """Targets by name. Each is imported when it is asked for, since not every one needs the same packages; UsageError
    where one is missing."""

    def __getitem__(self, name: str) -> Target:
        return _load(name, _CLASSES[name])

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


@cache
def _load(name: str, kind: str) -> Target:
    try:
        return getattr(importlib.import_module(f".{name}", __package__), kind)()
    except ImportError as error:
        raise UsageError(f"target {name} cannot be used here: {error}") from error


TARGETS: Mapping[str, Target] = _Targets()

__all__ = ["TARGETS", "Availability", "Callables", "Plan", "Table", "Target"]
