"""Times one op call as a decode step runs it: in a CUDA graph with early launches, with weights that come from memory.

The calls of one timing go through several sets of inputs. So the weights of a call are not in the GPU's cache from
the call before. The inputs are drawn by the op (`Op.draw`), and each set is at another position, evenly over the
context, since one launch config has to serve all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..compat.triton import compile_errors
from ..errors import RunError
from ..kernels.launch_config import LaunchConfig, flatten
from ..runtime.tensors import Graph
from ..runtime.with_torch.capture import capture
from ..verification.metric import TOLERANCES, deviation
from .op_calls import OpCall

SETS = 4
_SECONDS = 0.01  # that one timing takes, about
_TIMINGS = 5  # of which the shortest counts


@dataclass(frozen=True)
class Refused:
    """A launch config that cannot be used, and why.

    wrong  True where the kernels ran, and their results differ from those with the kernel's own guess
    """

    config: LaunchConfig
    why: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{config_numbers(self.config)}: {self.why}"


def config_numbers(config: LaunchConfig) -> dict[str, dict[str, int]]:
    """The numbers of a launch config by part and name, as JSON holds them."""
    return {part: numbers._asdict() for part, numbers in config.items()}


class Timing:
    """Times one op call with any launch config. Its inputs are on the GPU.

    A launch config is refused where the kernels do not compile or do not fit on the GPU, and where their results
    differ from those of the launch config that was timed first. Results are what the op returns and what it writes in
    place, for every set of inputs. `refused` lists these launch configs.

    Raises RunError where the GPU's memory does not hold two sets of inputs.
    """

    def __init__(self, call: OpCall, arch: str, context: int, device: torch.device) -> None:
        self.refused: list[Refused] = []
        self._call, self._arch, self._device = call, arch, device
        torch.cuda.empty_cache()  # memory that torch keeps from the call before would count as used
        positions = [context * (2 * index + 1) // (2 * SETS) for index in range(SETS)]
        first = self._draw(0, positions[0])
        size = sum(value.nbytes for value in first.values() if isinstance(value, torch.Tensor))
        free, _ = torch.cuda.mem_get_info(device)
        count = min(SETS, 1 + int(0.7 * free) // max(size, 1))
        if count < 2:
            raise RunError(
                f"{call.space}: {size:,} bytes of inputs are needed twice, {free:,} are free after the first; "
                "leave this kernel out with --only"
            )
        self._sets = [first, *(self._draw(seed, positions[seed]) for seed in range(1, count))]
        self._before = [{name: inputs[name].clone() for name in call.op.mutates} for inputs in self._sets]
        self._expected: list[list[torch.Tensor]] | None = None

    @torch.inference_mode()
    def microseconds(self, config: LaunchConfig) -> float:
        """The time of one call; infinite where the launch config is refused.

        Raises RunError where the GPU fails for good, and the errors of bugs in kernels as they are.
        """
        try:
            results = [self._results(config, index) for index in range(len(self._sets))]
            if self._expected is None:
                self._expected = results
            elif _differ(results, self._expected):
                why = "its results differ from those with the kernel's own guess"
                return self._refuse(Refused(config, why, wrong=True))
            return self._time(config)
        except torch.AcceleratorError as problem:  # no call of this process works on the GPU from now on
            raise RunError(
                f"{self._call.space}: the GPU fails with {Refused(config, str(problem))}; "
                "name the other kernels with --only"
            ) from problem
        except Exception as problem:
            if not _is_refusal(problem):
                problem.add_note(f"raised by {self._call.space} with {config_numbers(config)}")
                raise
            return self._refuse(Refused(config, _reason(problem)))

    def _draw(self, seed: int, position: int) -> dict[str, Any]:
        generator = torch.Generator(self._device).manual_seed(seed)
        return self._call.op.draw(self._call.arguments, generator, position)

    def _refuse(self, refused: Refused) -> float:
        self.refused.append(refused)
        return float("inf")

    def _run(self, config: LaunchConfig, index: int) -> Any:
        return self._call.kernel.op(**self._sets[index], config=flatten(config), arch=self._arch)

    def _results(self, config: LaunchConfig, index: int) -> list[torch.Tensor]:
        """The results of a call that finds the arguments it writes in place as they were drawn."""
        inputs = self._sets[index]
        for name, before in self._before[index].items():
            inputs[name].copy_(before)
        returned = self._run(config, index)
        return [result.clone() for result in self._call.op.results(returned, inputs)]

    def _time(self, config: LaunchConfig) -> float:
        def run_all() -> None:
            for index in range(len(self._sets)):
                self._run(config, index)

        (graph, _), _ = capture(run_all, self._device)
        _replay(graph, 1)
        replays = max(1, int(_SECONDS / _replay(graph, 1)))
        return min(_replay(graph, replays) for _ in range(_TIMINGS)) / len(self._sets) * 1e6


def _is_refusal(problem: Exception) -> bool:
    """Whether an error says that the launch config cannot be used. Any other error is a bug, here or in a kernel."""
    if isinstance(problem, (torch.OutOfMemoryError, *compile_errors())):
        return True
    # Triton's passes have no error class of their own.
    return isinstance(problem, RuntimeError) and str(problem).startswith("PassManager::run failed")


def _reason(problem: Exception) -> str:
    """One line on a refusal. Triton's errors keep it apart from the place in the kernel's source."""
    text = getattr(problem, "error_message", None) or str(problem)
    return next(iter(text.splitlines()), type(problem).__name__)


def _differ(results: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> bool:
    bound = TOLERANCES[torch.bfloat16]
    pairs = [pair for found, wanted in zip(results, expected, strict=True) for pair in zip(found, wanted, strict=True)]
    return not all(
        deviation(found, wanted).within(bound) if found.is_floating_point() else torch.equal(found, wanted)
        for found, wanted in pairs
    )


def _replay(graph: Graph, count: int) -> float:
    """Seconds that one replay takes, the mean of `count`."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count / 1e3
