"""Which TensorRT is installed: TensorRT for RTX, or the full TensorRT, whose engines can hold plugins.

Layer names and enumerations are the same in both. Neither is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

FULL, RTX = "tensorrt", "tensorrt_rtx"
INSTALL = {FULL: "pip install tensorrt-cu13", RTX: "pip install 'gptoss-export[tensorrt]'"}

# NVIDIA lists no Hopper for TensorRT for RTX. These versions ran engines on it all the same; 1.7 refuses it.
_UNLISTED = ("sm_90",)
_RAN_ON = {"1.6.1": ("sm_90",)}
_OLDEST_FULL = 11  # major version: the first with both the registration of plugins and aliases of inputs


@dataclass(frozen=True)
class Edition:
    """An installed TensorRT. `name` is the name of its module."""

    name: str
    version: str
    module: ModuleType

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def has_plugins(self) -> bool:
        """Whether an engine can hold a kernel."""
        return self.name == FULL

    @property
    def compiles_at_load(self) -> bool:
        """Whether an engine is finished on the machine that loads it, with a cache of what is compiled there."""
        return self.name == RTX

    @property
    def ran_on(self) -> tuple[str, ...]:
        """GPUs that NVIDIA does not list and that this version's engines ran on."""
        return _RAN_ON.get(".".join(self.version.split(".")[:3]), ()) if self.name == RTX else ()

    def supports(self, arch: str) -> bool:
        """Whether this version loads engines for `arch`, as far as is known."""
        return self.name != RTX or arch not in _UNLISTED or arch in self.ran_on


def installed_edition(name: str | None = None) -> Edition | None:
    """The TensorRT called `name`, which an artifact that it built needs.

    Without a name, the TensorRT to build with: TensorRT for RTX where it is installed, else the full TensorRT. None
    where it cannot be used here, and then `edition_problem` says why.
    """
    found = _find(name)
    return found if isinstance(found, Edition) else None


def edition_problem(name: str | None = None) -> str | None:
    """Why `installed_edition(name)` is None: not installed, or installed and not usable. None where it is usable."""
    found = _find(name)
    return None if isinstance(found, Edition) else found


def _find(name: str | None) -> Edition | str:
    names = (RTX, FULL) if name is None else (name,)
    for candidate in names:
        found = _import(candidate)
        if found is not None:  # a broken TensorRT is reported; another one does not take its place
            return found
    return f"{' and '.join(names)}: not installed"


def _import(name: str) -> Edition | str | None:
    """The TensorRT called `name`, or what is wrong with it, or None where it is not installed."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken package may raise any kind, and the user needs the reason
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None
        return f"{name}: installed, but importing it fails ({type(error).__name__}: {error})"
    if getattr(module, "__file__", "") is None:
        return None  # a namespace package: some folder of this name on the path
    if not hasattr(module, "Builder"):
        return f"{name}: has no Builder, as the lean runtime; install the whole package: {INSTALL[name]}"
    version = module.__version__
    if name == FULL and int(version.split(".")[0]) < _OLDEST_FULL:
        return f"{name}: found version {version}, expected {_OLDEST_FULL} or later: {INSTALL[name]}"
    return Edition(name, version, module)
