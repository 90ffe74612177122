"""Runs a schedule: engines by TensorRT's Python runtime, kernels by the CUDA driver, all on one stream.

A call enqueues every step and returns; captured in a CUDA graph, it is one launch. The stream is torch's current
one, unless that is the default stream, on which TensorRT would wait for the device at every engine. One execution context an
engine serves all its steps: it is bound anew before each. All programs share an arena, since one stream runs them
one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...driver import own_stream
from ...errors import ArtifactError
from ...manifest import Manifest, TensorSpec
from ..target import Callables
from .contexts import Contexts
from .flavour import Flavour
from .schedule import (
    ARENA,
    INPUT,
    EngineStep,
    KernelStep,
    PluginSpec,
    ProgramSchedule,
    Reference,
    load_schedule,
)

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEFAULT_SHARED = 48 << 10


def load_programs(manifest: Manifest, folder: Path, device: torch.device, flavour: Flavour) -> Callables:
    """The programs of an artifact, ready to call. Raises ArtifactError naming the file that cannot be loaded."""
    schedule = load_schedule(folder)
    contexts = Contexts(flavour, folder, schedule.engines, device)
    steps = [step for program in schedule.programs.values() for step in program.steps]
    launched = {step.plugin for step in steps if isinstance(step, KernelStep)}  # others are inside of engines
    kernels = {name: _Kernel(folder / "plugins" / f"{name}.cubin", schedule.plugins[name]) for name in launched}
    arena = torch.empty(max(program.arena for program in schedule.programs.values()), dtype=torch.uint8, device=device)
    return {
        name: partial(_run, program, manifest.programs[name].outputs, contexts, kernels, arena)
        for name, program in schedule.programs.items()
    }


class _Kernel:
    """A plugin's kernel, loaded."""

    def __init__(self, path: Path, spec: PluginSpec) -> None:
        from cuda.bindings import driver

        self._driver, self._spec = driver, spec
        try:
            self._module = self._call("cuModuleLoadData", path.read_bytes())
            self._function = self._call("cuModuleGetFunction", self._module, spec.function.encode())
            if spec.shared > _DEFAULT_SHARED:
                attribute = driver.CUfunction_attribute(_MAX_DYNAMIC_SHARED)
                self._call("cuFuncSetAttribute", self._function, attribute, spec.shared)
        except RuntimeError as error:
            raise ArtifactError(f"{path}: cannot be loaded ({error})") from None

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._driver, function)(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function}: {error.name}")
        return results[0] if results else None

    def launch(self, arguments: Sequence[int], stream: int) -> None:
        values = (ctypes.c_void_p * len(arguments))(*arguments)
        size = ctypes.sizeof(ctypes.c_void_p)
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(values) + size * i for i in range(len(arguments))))
        spec = self._spec
        self._call(
            "cuLaunchKernel", self._function, *spec.grid, spec.threads, 1, 1, spec.shared, stream,
            ctypes.addressof(pointers), 0,
        )  # fmt: skip


def _enqueue(context: Any, step: EngineStep, address: Callable[[Reference], int], stream: int) -> None:
    for kind, references in ("in", step.inputs), ("out", step.outputs):
        for index, reference in enumerate(references):
            context.set_tensor_address(f"{kind}{index}", address(reference))
    if not context.execute_async_v3(stream):
        raise RuntimeError(f"TensorRT could not enqueue engine {step.engine}")


def _run(
    program: ProgramSchedule,
    results: Sequence[TensorSpec],
    contexts: Contexts,
    kernels: dict[str, _Kernel],
    arena: torch.Tensor,
    inputs: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    outputs = [torch.empty(item.shape, dtype=getattr(torch, item.dtype), device=arena.device) for item in results]
    current = torch.cuda.current_stream(arena.device)
    stream = own_stream(arena.device) if current == torch.cuda.default_stream(arena.device) else current
    stream.wait_stream(current)
    base = arena.data_ptr()

    def address(reference: Reference) -> int:
        if reference.place == ARENA:
            return base + reference.value
        return (inputs if reference.place == INPUT else outputs)[reference.value].data_ptr()

    for step in program.steps:
        if isinstance(step, EngineStep):
            _enqueue(contexts[step.engine], step, address, stream.cuda_stream)
        else:
            kernels[step.plugin].launch(list(map(address, step.arguments)), stream.cuda_stream)
    current.wait_stream(stream)
    return outputs
