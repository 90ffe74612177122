"""How long one call takes, as in a decode step: in a graph with early launches, with weights from memory.

Calls go round over several sets of inputs, lest the cache of the chip hold the weights of the one before; and each set
stands at another position, evenly over the context, since a cut has to serve them all.
"""

from __future__ import annotations

import torch

from ..driver import own_stream
from ..kernel import Tiles, flat
from ..metric import TOLERANCES, error
from ..runtime.dependent_launch import launch_early
from .calls import Call, real_inputs

SETS = 4
_SECONDS = 0.01  # of one timing
_TIMINGS = 5


class Timing:
    """One call with its inputs on the GPU.

    A cut that does not compile, or whose results are not those of the kernel's own guess, is refused: it takes forever, and
    `refused` says why.
    """

    def __init__(self, call: Call, arch: str, context: int) -> None:
        self._call, self._arch = call, arch
        self._device = torch.device("cuda", torch.cuda.current_device())
        positions = [context * (2 * place + 1) // (2 * SETS) for place in range(SETS)]
        first = real_inputs(call, 0, self._device, positions[0])
        size = sum(value.nbytes for value in first if isinstance(value, torch.Tensor))
        free, _ = torch.cuda.mem_get_info(self._device)
        count = max(1, min(SETS, 1 + int(0.7 * free) // max(size, 1)))
        self._sets = [first, *(real_inputs(call, seed, self._device, positions[seed]) for seed in range(1, count))]
        self._expected: torch.Tensor | None = None
        self.refused: list[str] = []

    @torch.inference_mode()
    def microseconds(self, tiles: Tiles) -> float:
        """Of one call; infinite where the cut is refused."""
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        numbers = flat(tiles)
        try:
            result = self._results(numbers, 0)
        except (CompilationError, OutOfResources, PTXASError, ValueError) as problem:
            return self._refuse(tiles, str(problem).splitlines()[0])
        if self._expected is None:
            self._expected = result
        found = error(result, self._expected)
        if not found.within(TOLERANCES[torch.bfloat16]):
            return self._refuse(tiles, f"its results are others than those of the default: {found}")
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=own_stream(self._device)):
            for index in range(len(self._sets)):
                self._results(numbers, index)
        launch_early(graph.raw_cuda_graph())
        graph.instantiate()
        self._replay(graph, 1)
        once = self._replay(graph, 1)
        replays = max(1, int(_SECONDS / once))
        return min(self._replay(graph, replays) for _ in range(_TIMINGS)) / len(self._sets) * 1e6

    def _refuse(self, tiles: Tiles, why: str) -> float:
        self.refused.append(f"{ {part: numbers._asdict() for part, numbers in tiles.items()} }: {why}")
        return float("inf")

    def _results(self, numbers: list[int], index: int) -> torch.Tensor:
        """The call's result, the first of several."""
        results = self._call.kernel.op(*self._sets[index], numbers, self._arch)
        return results[0] if isinstance(results, tuple) else results

    def _replay(self, graph: torch.cuda.CUDAGraph, count: int) -> float:
        """Seconds of one replay of `count`."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / count / 1e3
