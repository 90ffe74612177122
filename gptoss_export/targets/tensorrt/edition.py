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
_UNLISTED = ("sm_90",)
_OLDEST_FULL = 11  # major version: what plugins are registered with, and aliases of inputs, came by then


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

    @property
    def seen_on(self) -> tuple[str, ...]:
        """The GPUs that this version's engines ran on in trials, against what NVIDIA lists."""
        return RTX_VERSIONS.get(".".join(self.version.split(".")[:3]), ()) if self.name == RTX else ()

    def supports(self, arch: str) -> bool:
        """Whether engines for `arch` are worth building: not for a GPU that this version may refuse."""
        return self.name != RTX or arch not in _UNLISTED or arch in self.seen_on


@cache
def installed(name: str | None = None) -> Flavour | None:
    """The TensorRT called `name`, which is what an artifact that it built needs; None where it is not installed.

    Without a name, the one to build with: TensorRT for RTX where both are, as long as an engine with its kernels
    inside has never been executed (docs/targets.md). A full TensorRT below version 11 counts for nothing.
    """
    for candidate in (RTX, FULL) if name is None else (name,):
        try:
            module = importlib.import_module(candidate)
            module.Builder  # noqa: B018  (the lean runtime has none)
        except (ImportError, AttributeError, OSError):
            continue
        if candidate == RTX or int(module.__version__.split(".")[0]) >= _OLDEST_FULL:
            return Flavour(candidate, module.__version__, module)
    return None
