"""Runs a schedule: engines by TensorRT's Python runtime, kernels by the CUDA driver, all on one stream.

A call enqueues every step and returns; captured in a CUDA graph, it is one launch. The stream is torch's current
one, unless that is the default stream, on which TensorRT would wait for the device at every engine. One execution
context an engine serves all its steps: it is bound anew before each. All programs share an arena, since one stream
runs them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...runtime.cuda.driver import own_stream
from ...errors import ArtifactError, RunError, raise_all
from ...artifact.manifest import Manifest, TensorSpec
from ..target import Callables
from .check import binding_violations
from .contexts import CACHE, Contexts
from .edition import Flavour
from .kernel import Kernel
from .schedule import ARENA, INPUT, NAME, EngineStep, KernelStep, ProgramSchedule, Reference, load_schedule


def load_programs(manifest: Manifest, folder: Path, device: torch.device, flavour: Flavour) -> Callables:
    """The programs of an artifact, ready to call. Raises ArtifactError naming the file that cannot be loaded."""
    schedule = load_schedule(folder, manifest)
    stored = (folder / CACHE).read_bytes() if CACHE in manifest.files else None
    with torch.cuda.device(device):
        contexts = Contexts(flavour, folder, schedule.engines, device, stored)
        raise_all(
            ArtifactError, f"{folder}: engines and {NAME} contradict each other; build the artifact again",
            binding_violations(schedule, manifest, contexts.engines),
        )  # fmt: skip
        contexts.allocate()
        steps = [step for program in schedule.programs.values() for step in program.steps]
        launched = {step.plugin for step in steps if isinstance(step, KernelStep)}
        kernels = {
            name: Kernel(folder / "plugins" / f"{name}.cubin", schedule.plugins[name], device) for name in launched
        }
        size = max(program.arena for program in schedule.programs.values())
        arena = torch.empty(size, dtype=torch.uint8, device=device)
    return {
        name: partial(_run, program, manifest.programs[name].outputs, contexts, kernels, arena)
        for name, program in schedule.programs.items()
    }


def _enqueue(context: Any, step: EngineStep, address: Callable[[Reference], int], stream: int) -> None:
    for kind, references in ("in", step.inputs), ("out", step.outputs):
        for index, reference in enumerate(references):
            if not context.set_tensor_address(f"{kind}{index}", address(reference)):
                raise RunError(f"engine {step.engine}: TensorRT does not take the address of {kind}{index} ({reference})")
    if not context.execute_async_v3(stream):
        raise RunError(f"engine {step.engine}: TensorRT could not enqueue it")


def _run(
    program: ProgramSchedule,
    results: Sequence[TensorSpec],
    contexts: Contexts,
    kernels: dict[str, Kernel],
    arena: torch.Tensor,
    inputs: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    # Kernels are launched in the current device's context, whichever device the caller has current.
    with torch.cuda.device(arena.device):
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
