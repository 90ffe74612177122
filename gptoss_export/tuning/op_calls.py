"""Finds the distinct op calls that the programs of an artifact make.

Every program is traced and lowered as a build does it, with kernels that record their calls. A composed op has a
kernel of its own, and some targets compile its reference instead, whose smaller ops have kernels too. So each program
is lowered twice: with the references of the composed ops, and with their kernels.

Where ranks share the model, the calls are those of every kind of rank, without what the ranks exchange: a GPU is tuned
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..artifact.programs import Sizes, model_programs
from ..compiler.export import trace
from ..compiler.lower import Implementations, lower
from ..kernels.kernel import ConfigChooser, Kernel
from ..kernels.launch_config import ConfigSpace
from ..kernels.registry import kernels
from ..model.config import ModelConfig
from ..model.ops import OPS, Arguments, Op
from ..model.ranks import program_configs
from ..progress import Progress

_EXCHANGE = "sum_ranks"  # the op that is nothing but an exchange


@dataclass(frozen=True)
class OpCall:
    """An op call whose kernels can be launched in several ways.

    op         the op that is called
    kernel     its kernels
    space      the launch configs that the call can have
    arguments  by name; tensors are on the meta device: they have shapes and dtypes and no values
    """

    op: Op
    kernel: Kernel
    space: ConfigSpace
    arguments: dict[str, Any]


def op_calls(
    config: ModelConfig, sizes: Sizes, dtype: torch.dtype, arch: str, progress: Progress | None = None
) -> list[OpCall]:
    """All op calls of an artifact for `arch` with a choice of launch configs, one for each shape.

    Raises LoweringError as `kernels.registry.kernels`.
    """
    progress = progress or Progress()
    recorder = _Recorder(kernels(), ConfigChooser(arch))
    for part in program_configs(config.shortest(), sizes.sharing):
        for program in model_programs(sizes):
            progress.update(f"trace {program.name}")
            traced = trace(program, part, sizes, dtype, torch.device("cpu"))
            lower(traced, recorder.implementations(composed_by_reference=True))
            lower(traced, recorder.implementations(composed_by_reference=False))
    pages = 1 + sizes.table[0] * sizes.table[1]
    calls = (_of_one_rank(call) for call in recorder.calls.values() if call.op.name != _EXCHANGE)
    return [replace(call, arguments=_on_meta(call.arguments, pages)) for call in calls]


class _Recorder:
    """Implementations of ops by kernels, which record the calls that the kernels get."""

    def __init__(self, offered: Mapping[str, Kernel], chooser: ConfigChooser) -> None:
        self.calls: dict[str, OpCall] = {}
        self._offered, self._chooser = offered, chooser

    def implementations(self, composed_by_reference: bool) -> Implementations:
        """What computes each op. composed_by_reference: ops made of smaller ops are computed by their references."""
        return {
            name: op.reference
            if name not in self._offered or (composed_by_reference and op.parts)
            else self._recording(op, self._offered[name]).bind(op, self._chooser)
            for name, op in OPS.items()
        }

    def _recording(self, op: Op, kernel: Kernel) -> Kernel:
        """A kernel that records a call whenever it is asked for the call's config space."""
        config_space = kernel.config_space
        if config_space is None:
            return kernel

        def recorded(arguments: Arguments, arch: str) -> ConfigSpace:
            space = config_space(arguments, arch)
            self.calls.setdefault(str(space), OpCall(op, kernel, space, dict(arguments)))
            return space

        return replace(kernel, config_space=recorded)


def _of_one_rank(call: OpCall) -> OpCall:
    """The call without what ranks exchange at its end."""
    if call.arguments.get("places") is None:
        return call
    return replace(call, arguments=call.arguments | {"places": None, "ranks": 1})


def _on_meta(arguments: Arguments, pages: int) -> dict[str, Any]:
    """The arguments of a traced call without the tracer's own tensors. The caches have so many pages."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            shape = [size if isinstance(size, int) else pages for size in value.shape]
            value = torch.empty(shape, dtype=value.dtype, device="meta")
        found[name] = value
    return found
