"""Runs a schedule: engines by TensorRT's Python runtime, kernels by the CUDA driver, all on one stream.

A call enqueues every schedule step and returns. Captured in a CUDA graph, it is one launch. The stream is torch's
current one, unless that is the default stream, on which TensorRT would wait for the device at every engine.

An engine has one execution context for all of its steps, which is bound again before each. All programs share one
arena, since one stream runs them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...artifact.calls import TensorSpec
from ...artifact.manifest import Manifest
from ...errors import ArtifactError, RunError, raise_all
from ...model.dtypes import torch_dtype
from ...runtime.tensors import LoadedProgram
from ...runtime.with_torch.capture import CAPTURING, own_stream
from .check import binding_violations, load_schedule
from .contexts import CACHE, Contexts
from .edition import Edition
from .launched_kernel import LaunchedKernel
from .schedule import ARENA, INPUT, NAME, EngineStep, KernelStep, ProgramSchedule, Reference


def load_programs(manifest: Manifest, folder: Path, device: torch.device, edition: Edition) -> dict[str, LoadedProgram]:
    """The programs of an artifact, ready to call. Raises ArtifactError naming the file that cannot be loaded."""
    schedule = load_schedule(folder, manifest)
    stored = (folder / CACHE).read_bytes() if CACHE in manifest.files else None
    with torch.cuda.device(device):
        contexts = Contexts(edition, folder, schedule.engines, device, stored)
        raise_all(
            ArtifactError,
            f"{folder}: engines and {NAME} contradict each other; build the artifact again",
            binding_violations(schedule, manifest, contexts.engines),
        )
        contexts.allocate()
        steps = [step for program in schedule.programs.values() for step in program.steps]
        launched = {step.plugin for step in steps if isinstance(step, KernelStep)}
        kernels = {
            name: LaunchedKernel(folder / "plugins" / f"{name}.cubin", schedule.plugins[name], device)
            for name in launched
        }
        size = max(program.arena for program in schedule.programs.values())
        arena = torch.empty(size, dtype=torch.uint8, device=device)
    return {
        name: partial(run_program, program, manifest.programs[name].outputs, contexts, kernels, arena)
        for name, program in schedule.programs.items()
    }


def run_program(
    program: ProgramSchedule,
    results: Sequence[TensorSpec],
    contexts: Contexts,
    kernels: Mapping[str, LaunchedKernel],
    arena: torch.Tensor,
    inputs: Sequence[Any],
) -> list[torch.Tensor]:
    """Enqueue a program; returns its results, in new tensors."""
    # Kernels are launched in the context of the current device, and the caller may have another one current.
    # Another thread may capture, on the stream that is used here.
    with CAPTURING, torch.cuda.device(arena.device):
        outputs = [torch.empty(item.sizes(0), dtype=torch_dtype(item.dtype), device=arena.device) for item in results]
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
                enqueue_engine(contexts[step.engine], step, address, stream.cuda_stream)
            else:
                kernels[step.plugin].launch(list(map(address, step.arguments)), stream.cuda_stream)
        current.wait_stream(stream)
    return outputs


def enqueue_engine(context: Any, step: EngineStep, address: Callable[[Reference], int], stream: int) -> None:
    """Bind an engine's tensors and enqueue it. Raises RunError naming the engine where TensorRT refuses."""
    for kind, references in ("in", step.inputs), ("out", step.outputs):
        for index, reference in enumerate(references):
            name = f"{kind}{index}"
            if not context.set_tensor_address(name, address(reference)):
                raise RunError(f"engine {step.engine}: TensorRT does not accept the address of {name} ({reference})")
    if not context.execute_async_v3(stream):
        raise RunError(f"engine {step.engine}: TensorRT could not enqueue it")
