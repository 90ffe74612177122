"""Running an artifact. Nothing here builds, and nothing here knows a target.

`gptoss_export.runtime.TrainStep` is that of `train_step.py`, which is imported when it is first used: it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train_step import TrainStep

__all__ = ["TrainStep"]


def __getattr__(name: str) -> Any:
    if name != "TrainStep":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .train_step import TrainStep

    return TrainStep
