"""Tunes the kernels of a model: measures which launch configs are the fastest on this machine's GPU.

  op_calls.py   which op calls the model's programs make
  timing.py     how long one call takes with a launch config
  search.py     which launch configs are tried

The results are entries of tuned configs (kernels/tuned_configs.py), which `build --tuned-configs` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf

import torch

from ..artifact.programs import Sizes
from ..errors import UsageError
from ..kernels.launch_config import ConfigSpace
from ..kernels.tuned_configs import TunedConfig
from ..model.config import ModelConfig
from ..progress import Progress
from .op_calls import OpCall, op_calls
from .search import search
from .timing import Refused, Timing, config_numbers


@dataclass(frozen=True)
class Tuned:
    """The result for one op call.

    space    the launch configs that the call can have
    entry    the fastest one; None where the kernel's own guess was refused
    tried    how many launch configs were timed
    refused  those that cannot be used
    """

    space: ConfigSpace
    entry: TunedConfig | None
    tried: int
    refused: list[Refused]


def tune(
    config: ModelConfig, sizes: Sizes, arch: str, only: tuple[str, ...] = (), progress: Progress | None = None
) -> Iterator[Tuned]:
    """Tune every kernel that the programs of an artifact of `sizes` launch, in bfloat16, on torch's current GPU.

    arch  the arch of that GPU, such as sm_90
    only  names of config spaces, such as unembed; others are left out. Empty: all

    Raises UsageError for a name that no program has, RunError where the GPU fails or has too little memory.
    """
    progress = progress or Progress()
    with progress.stage("trace the programs"):
        calls = op_calls(config, sizes, torch.bfloat16, arch, progress)
    names = {call.space.name for call in calls}
    if unknown := set(only) - names:
        raise UsageError(f"--only {', '.join(sorted(unknown))}: expected some of {', '.join(sorted(names))}")
    for call in calls:
        if not only or call.space.name in only:
            with progress.stage(f"tune {call.space}"):
                tuned = _tune_call(call, sizes, arch, progress)
            yield tuned


def _tune_call(call: OpCall, sizes: Sizes, arch: str, progress: Progress) -> Tuned:
    space = call.space
    timing = Timing(call, arch, sizes.max_context, torch.device("cuda", torch.cuda.current_device()))

    def report(tried: int) -> None:
        progress.update(f"tune {space}: {tried} launch configs tried")

    best = search(space, timing.microseconds, report)
    if isinf(best.us):
        return Tuned(space, None, best.tried, timing.refused)
    entry = TunedConfig(
        name=space.name,
        shape=dict(space.shape),
        config=config_numbers(best.config),
        us=round(best.us, 2),
        default_us=round(best.default_us, 2),
    )
    return Tuned(space, entry, best.tried, timing.refused)
