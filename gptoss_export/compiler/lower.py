"""Swaps each gptoss:: node of a program for what a target accepts, or refuses.

One mechanism for all targets: the program is traced again with each op computed by its implementation,
which is the op's reference (then plain aten and smaller ops are left) or a kernel from the plugin package
(then a `gptoss_triton::` node is left, which AOTInductor compiles to an embedded cubin). Decomposition
tables would do for functions, but not for an op that writes a cache in place: export wraps its node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import LoweringError, raise_all
from .export import Program
from ..kernels.kernel import Kernel
from ..model.ops import OPS
from ..kernels.tuned_configs import CutTable, read_table

KERNELS = "gptoss_export.kernels"  # entry point group; the name of an entry is the name of its op
TABLES = "gptoss_export.tables"  # entry point group; an entry is the folder in which a package ships tables
PLUGINS = "gptoss_export.plugins"  # entry point group; `maker` makes plugins of launches, `add` puts one in a network

Implementations = Mapping[str, Callable[..., Any]]


def references() -> Implementations:
    """Every op by its plain PyTorch reference."""
    return {name: op.reference for name, op in OPS.items()}


def themselves() -> Implementations:
    """Every op as it is: the target has its own way to write it."""
    return {name: op.overload for name, op in OPS.items()}


def kernels() -> Mapping[str, Kernel]:
    """What installed packages offer for each op. Raises LoweringError for those without."""
    offered = {entry.name: entry for entry in entry_points(group=KERNELS)}
    missing = [f"{name}: no entry point of that name in group {KERNELS}" for name in OPS if name not in offered]
    raise_all(LoweringError, "ops without a kernel; reinstall gptoss-export", missing)
    try:
        return {name: offered[name].load() for name in OPS}
    except ImportError as error:
        raise LoweringError(f"kernels cannot be imported: {error}; run: pip install 'gptoss-export[cuda]'") from error


def shipped_tables() -> tuple[CutTable, ...]:
    """The tables of measured cuts that installed packages bring: first those that were measured with the Triton that compiles
    here, since compilers differ in what they make fast. Raises LoweringError where there is no Triton."""
    folders = [Path(entry.load()) for entry in entry_points(group=TABLES)]
    tables = [read_table(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    here = _minor(compiler())
    return tuple(sorted(tables, key=lambda table: _minor(table.versions.get("triton", "")) != here))


def compiler() -> str:
    """The version of the Triton that compiles the kernels. Raises LoweringError where there is none."""
    try:
        import triton
    except ImportError as error:
        raise LoweringError(f"kernels cannot be compiled: {error}; run: pip install 'gptoss-export[cuda]'") from error
    return triton.__version__


def _minor(release: str) -> list[str]:
    return release.split(".")[:2]


def kernel_ops(arch: str, tables: Sequence[CutTable]) -> Implementations:
    """Every op by its kernels, for `arch`, cut as the first table says that knows."""
    return {name: kernel.bind(arch, tables) for name, kernel in kernels().items()}


def launches(arch: str, tables: Sequence[CutTable], *names: str) -> Implementations:
    """Some ops as the kernel launches that they are made of, which stay in the graph one by one.

    Raises LoweringError for ops without a kernel.
    """
    return {name: kernel.launches(arch, tables) for name, kernel in kernels().items() if name in names}


def plugin_parts() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes plugins of kernel launches for an arch, and what adds one to a TensorRT network.

    Raises LoweringError where no package offers them.
    """
    offered = {entry.name: entry for entry in entry_points(group=PLUGINS)}
    missing = [f"{name}: no entry point of that name in group {PLUGINS}" for name in ("maker", "add") if name not in offered]
    raise_all(LoweringError, "no plugins can be made; reinstall gptoss-export", missing)
    return offered["maker"].load(), offered["add"].load()


def lower(program: Program, implementations: Implementations) -> Program:
    """The program with every gptoss:: op replaced; raises LoweringError naming ops that are left.

    An implementation may bring in ops of its own (a sublayer's reference calls the attention): they are
    replaced in the next round.
    """
    table = {OPS[name].overload: implementation for name, implementation in implementations.items()}
    kept = {overload for overload, implementation in table.items() if overload is implementation}
    table = {overload: implementation for overload, implementation in table.items() if overload not in kept}
    exported = program.exported
    while any(node.target in table for node in exported.graph.nodes):
        exported = torch.export.export(_Replacing(exported, table), exported.example_inputs[0], strict=False)
    left = sorted(
        {
            f"{node.target} ({node.name})"
            for node in exported.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "gptoss" and node.target not in kept
        }
    )
    raise_all(LoweringError, f"program {program.name}: ops that nothing implements for this target", left)
    return dataclasses.replace(program, exported=exported)


class _Replacing(torch.nn.Module):
    """Runs a program's graph with some of its ops computed by something else."""

    def __init__(self, exported: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._interpreter = [_Interpreter(exported.module(check_guards=False), table)]  # no submodule: it has no state

    def forward(self, *arguments):
        return self._interpreter[0].run(*arguments)


class _Interpreter(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, table: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__(module)
        self._table = table

    def call_function(self, target, args, kwargs):
        return super().call_function(self._table.get(target, target), args, kwargs)
