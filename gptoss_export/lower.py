"""Swaps each gptoss:: node of a program for what a target accepts, or refuses.

One mechanism for all targets: `ExportedProgram.run_decompositions({op: implementation})`. The
implementation is the op's reference (then plain aten is left) or a kernel from the plugin package (then a
`gptoss_triton::` node is left, which AOTInductor compiles to an embedded cubin).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import torch

from .errors import LoweringError, raise_all
from .export import Program
from .ops import OPS

KERNELS = "gptoss_export.kernels"  # entry point group; the name of an entry is the name of its op

Implementations = Mapping[str, Callable[..., torch.Tensor]]


def references() -> Implementations:
    """Every op by its plain PyTorch reference."""
    return {name: op.reference for name, op in OPS.items()}


def kernels() -> Implementations:
    """Every op by the kernel that an installed package offers for it. Raises LoweringError for those without."""
    offered = {entry.name: entry for entry in entry_points(group=KERNELS)}
    missing = [f"{name}: no entry point of that name in group {KERNELS}" for name in OPS if name not in offered]
    raise_all(LoweringError, "ops without a kernel; reinstall gptoss-export", missing)
    try:
        return {name: offered[name].load() for name in OPS}
    except ImportError as error:
        raise LoweringError(f"kernels cannot be imported: {error}; run: pip install 'gptoss-export[cuda]'") from error


def lower(program: Program, implementations: Implementations) -> Program:
    """The program with every gptoss:: op replaced; raises LoweringError naming ops that are left."""
    table = {OPS[name].overload: implementation for name, implementation in implementations.items()}
    exported = program.exported.run_decompositions(table)
    left = sorted(
        {
            f"{node.target} ({node.name})"
            for node in exported.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "gptoss"
        }
    )
    raise_all(LoweringError, f"program {program.name}: ops that nothing implements for this target", left)
    return dataclasses.replace(program, exported=exported)
