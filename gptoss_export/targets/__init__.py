"""The targets. A new one is one new file here and one line below."""

from __future__ import annotations

from .aoti import Aoti
from .target import Availability, Callables, Target

TARGETS: dict[str, Target] = {target.name: target for target in (Aoti(),)}

__all__ = ["TARGETS", "Availability", "Callables", "Target"]
