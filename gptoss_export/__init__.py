"""gptoss-export: compile gpt-oss checkpoints ahead of time and run the artifacts.

build           checkpoint folder -> artifact folder
load            artifact folder -> Runner
load_train_step artifact folder -> TrainStep
verify          compare an artifact with an oracle
sign            sign an artifact with a private key
Runner          a loaded artifact
Engine          any number of requests over a runner
SamplingParams  how a sequence chooses its tokens
TrainOptions    what a build that makes a training step is asked for
TrainStep       a loaded training step

Each name is imported when it is first used, so that `import gptoss_export` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from .artifact.signing import sign
    from .building import BuildOptions, build
    from .loading import load, load_train_step
    from .runtime.engine import Engine
    from .runtime.generation import Generation, Token
    from .runtime.runner import Runner
    from .runtime.sampling_params import SamplingParams
    from .runtime.train_step import TrainStep
    from .training_options import TrainOptions
    from .verification.verify import verify

_PUBLIC = {
    "BuildOptions": "building",
    "Engine": "runtime.engine",
    "Generation": "runtime.generation",
    "Runner": "runtime.runner",
    "SamplingParams": "runtime.sampling_params",
    "Token": "runtime.generation",
    "TrainOptions": "training_options",
    "TrainStep": "runtime.train_step",
    "build": "building",
    "load": "loading",
    "load_train_step": "loading",
    "sign": "artifact.signing",
    "verify": "verification.verify",
}

__all__ = [
    "BuildOptions",
    "Engine",
    "Generation",
    "Runner",
    "SamplingParams",
    "Token",
    "TrainOptions",
    "TrainStep",
    "build",
    "load",
    "load_train_step",
    "sign",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
