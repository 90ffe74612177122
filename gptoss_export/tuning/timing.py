"""How long one call takes, as in a decode step: in a graph with early launches, with weights from memory.

Calls go round over several sets of inputs, lest the cache of the chip hold the weights of the one before; and each set
stands at another position, evenly over the context, since a cut has to serve them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .op_calls import Call
from ..runtime.cuda.driver import own_stream
from ..errors import RunError
from ..kernels.kernel import Tiles, flat
from ..verify.metric import TOLERANCES, error
from ..model.ops import OPS
from ..runtime.cuda.early_launch import launch_early
from .inputs import real_inputs

SETS = 4
_SECONDS = 0.01  # of one timing
_TIMINGS = 5


@dataclass(frozen=True)
class Refused:
    """A cut that cannot be used, and why; `wrong`: it runs, and its results are not those of the kernel's own guess."""

    tiles: Tiles
    why: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{ {part: numbers._asdict() for part, numbers in self.tiles.items()} }: {self.why}"


class Timing:
    """One call with its inputs on the GPU.

    A cut that does not compile or run, or whose results (what it returns and what it writes in place, for every set) are not
    those of the first cut timed, takes forever, and `refused` says why. Raises RunError where the GPU's memory does not hold
    two sets.
    """

    def __init__(self, call: Call, arch: str, context: int, device: torch.device) -> None:
        self._call, self._arch, self._device = call, arch, device
        torch.cuda.empty_cache()  # what the kernel before this one has left counts as used otherwise
        positions = [context * (2 * place + 1) // (2 * SETS) for place in range(SETS)]
        first = real_inputs(call, 0, self._device, positions[0])
        size = sum(value.nbytes for value in first if isinstance(value, torch.Tensor))
        free, _ = torch.cuda.mem_get_info(self._device)
        count = min(SETS, 1 + int(0.7 * free) // max(size, 1))
        if count < 2:
            raise RunError(f"{call.cut}: {size:,} bytes of inputs are needed twice, {free:,} are free beside the first; "
                           "leave this kernel out with --only")  # fmt: skip
        self._sets = [first, *(real_inputs(call, seed, self._device, positions[seed]) for seed in range(1, count))]
        written = [list(call.arguments).index(name) for name in OPS[call.op].mutates]
        self._written = [{index: inputs[index].clone() for index in written} for inputs in self._sets]
        self._expected: list[list[torch.Tensor]] | None = None
        self.refused: list[Refused] = []

    @torch.inference_mode()
    def microseconds(self, tiles: Tiles) -> float:
        """Of one call; infinite where the cut is refused. Raises RunError where the GPU fails for good."""
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        try:
            results = [self._results(flat(tiles), index) for index in range(len(self._sets))]
            differs = self._expected is not None and self._differs(results)
        except torch.AcceleratorError as problem:  # no call of this process works on the GPU any more
            raise RunError(f"{self._call.cut}: the GPU fails with {Refused(tiles, str(problem))}; name the other kernels "
                           "with --only") from problem  # fmt: skip
        except (CompilationError, OutOfResources, PTXASError, RuntimeError, ValueError, AssertionError) as problem:
            return self._refuse(Refused(tiles, next(iter(str(problem).splitlines()), type(problem).__name__)))
        if differs:
            return self._refuse(Refused(tiles, "its results are others than those of the kernel's own guess", wrong=True))
        if self._expected is None:
            self._expected = results
        return self._time(flat(tiles))

    def _refuse(self, refused: Refused) -> float:
        self.refused.append(refused)
        return float("inf")

    def _results(self, numbers: list[int], index: int) -> list[torch.Tensor]:
        """What the call returns, and what it has written over what was there before any call."""
        inputs = self._sets[index]
        for place, before in self._written[index].items():
            inputs[place].copy_(before)
        results = self._run(numbers, index)
        returned = results if isinstance(results, tuple) else (results,)
        # Without the scratch row, where any of the padding may stay.
        return [*returned, *(inputs[place][:, :, :-1].clone() for place in self._written[index])]

    def _run(self, numbers: list[int], index: int) -> Any:
        return self._call.kernel.op(*self._sets[index], numbers, self._arch)

    def _differs(self, results: list[list[torch.Tensor]]) -> bool:
        bound = TOLERANCES[torch.bfloat16]
        pairs = [pair for set_, expected in zip(results, self._expected, strict=True) for pair in zip(set_, expected, strict=True)]
        return not all(
            error(got, wanted).within(bound) if got.is_floating_point() else torch.equal(got, wanted) for got, wanted in pairs
        )

    def _time(self, numbers: list[int]) -> float:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=own_stream(self._device)):
            for index in range(len(self._sets)):
                self._run(numbers, index)
        launch_early(graph.raw_cuda_graph())
        graph.instantiate()
        self._replay(graph, 1)
        once = self._replay(graph, 1)
        replays = max(1, int(_SECONDS / once))
        return min(self._replay(graph, replays) for _ in range(_TIMINGS)) / len(self._sets) * 1e6

    def _replay(self, graph: torch.cuda.CUDAGraph, count: int) -> float:
        """Seconds of one replay of `count`."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / count / 1e3
