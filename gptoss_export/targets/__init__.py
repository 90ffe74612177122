"""The targets. A new one is one new file here and one line below."""

from __future__ import annotations

from .aoti import Aoti
from .target import Availability, Callables, Table, Target
from .tensorrt import TensorRT

TARGETS: dict[str, Target] = {target.name: target for target in (Aoti(), TensorRT())}

__all__ = ["TARGETS", "Availability", "Callables", "Table", "Target"]
