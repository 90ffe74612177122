"""Finds out how the kernels of a model are best cut on the GPU at hand: `gptoss-export tune`.

The kernels are called as the model's programs call them, with real inputs, because Inductor's own timing feeds
zeros, for which all tokens choose one expert and stand at position 0 (inputs.py). They are timed as a decode step runs them, in
a graph with early launches, over weights that the cache of the chip does not hold (timing.py), and their cuts are improved one
number at a time (search.py). What comes of it is a table (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isinf

import torch

from .op_calls import calls
from ..model.config import ModelConfig
from ..errors import UsageError
from ..compiler.export import Shapes
from ..kernels.kernel import Cut
from ..progress import Steps
from ..kernels.tuned_configs import Entry
from .search import search
from .timing import Refused, Timing


@dataclass(frozen=True)
class Tuned:
    """One kernel tuned: its cut, its entry (None where its own guess was refused), how many cuts were tried, and those refused."""

    cut: Cut
    entry: Entry | None
    tried: int
    refused: list[Refused]


def tune(
    config: ModelConfig, shapes: Shapes, arch: str, only: tuple[str, ...] = (), steps: Steps | None = None
) -> Iterator[Tuned]:
    """Tune every kernel that the programs of a build for `shapes` launch, in bfloat16, on torch's current GPU.

    only: names of cuts, in place of all. Raises UsageError for one that no program has, RunError where the GPU fails.
    """
    steps = steps or Steps()
    with steps.step("trace the programs"):
        found = calls(config, shapes, torch.bfloat16)
    names = {call.cut.name for call in found}
    if unknown := set(only) - names:
        raise UsageError(f"--only {', '.join(sorted(unknown))}: expected of {', '.join(sorted(names))}")
    for call in found:
        if only and call.cut.name not in only:
            continue
        with steps.step(f"tune {call.cut}"):
            timing = Timing(call, arch, shapes.max_context, torch.device("cuda", torch.cuda.current_device()))
            report: Callable[[int], None] = lambda tried, cut=call.cut: steps.at(f"tune {cut}: {tried} cuts tried")
            best = search(call.cut, timing.microseconds, report)
        tiles = {part: numbers._asdict() for part, numbers in best.tiles.items()}
        entry = Entry(call.cut.name, dict(call.cut.shape), tiles, round(best.us, 2), round(best.default_us, 2))
        refused = timing.refused
        del timing  # its inputs, before the next one's are made
        yield Tuned(call.cut, None if isinf(best.us) else entry, best.tried, refused)
