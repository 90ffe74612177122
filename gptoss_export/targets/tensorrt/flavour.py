"""Which TensorRT is installed: the full one, which has plugins inside of engines, or TensorRT for RTX, which has none.

Layer names and enumerations are the same in both. Nothing here imports either before it is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

FULL, RTX = "tensorrt", "tensorrt_rtx"
INSTALL = {FULL: "pip install tensorrt-cu13", RTX: "pip install 'gptoss-export[tensorrt]'"}

# Versions that ran engines on these GPUs, in trials. NVIDIA lists no Hopper for TensorRT for RTX, and 1.7 refuses it.
RTX_VERSIONS = {"1.6.1": ("sm_90",)}


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT."""

    name: str  # of the module
    version: str
    module: ModuleType

    @property
    def has_plugins(self) -> bool:
        """Whether a kernel can be inside of an engine."""
        return self.name == FULL

    @property
    def compiles_at_load(self) -> bool:
        """Whether an engine is finished on the machine that runs it, and has a cache for that."""
        return self.name == RTX


@cache
def installed() -> Flavour | None:
    """The TensorRT that builds and runs here; the full one where both are."""
    for name in FULL, RTX:
        try:
            module = importlib.import_module(name)
            module.Builder  # noqa: B018  (the lean runtime has none)
        except (ImportError, AttributeError, OSError):
            continue
        return Flavour(name, module.__version__, module)
    return None
