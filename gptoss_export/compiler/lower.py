"""Replaces each gptoss:: node of a traced program by what a target accepts.

All targets use one mechanism: the program is traced again with each op computed by its implementation. That is the
op's reference (plain aten and smaller ops remain), a kernel (a `gptoss_triton::` node remains), or the kernel's
launches. An implementation may bring in smaller ops, which the next round replaces. Decomposition tables would serve
for pure functions, but not for an op that writes a cache in place, since export wraps such a node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram

from ..compat.pytorch import is_op
from ..errors import LoweringError, raise_all
from ..kernels.kernel import ConfigChooser, Kernel
from ..kernels.registry import kernels
from ..model.expert_weights import is_mxfp4
from ..model.mxfp4 import deinterleave
from ..model.ops import OPS, Op
from .export import TracedProgram

Implementations: TypeAlias = Mapping[str, Callable[..., Any]]  # op name -> what computes it


def reference_implementations() -> Implementations:
    """Every op by its plain PyTorch reference."""
    return {name: op.reference for name, op in OPS.items()}


def unchanged_implementations() -> Implementations:
    """Every op as it is: the target writes the ops itself."""
    return {name: op.overload for name, op in OPS.items()}


def kernel_implementations(chooser: ConfigChooser) -> Implementations:
    """Every op by its kernels, and an op without kernels by its reference. Raises LoweringError as
    `registry.kernels`."""
    offered = _kernels_of_a_gpu()
    return {name: offered[name].bind(op, chooser) if name in offered else _on_a_gpu(op) for name, op in OPS.items()}


def launch_implementations(chooser: ConfigChooser) -> Implementations:
    """Ops that a compiler of plain operators does badly as the launches of their kernels, all others by their
    references.

    Raises LoweringError as `registry.kernels`, and for such an op without kernels.
    """
    offered = _kernels_of_a_gpu()
    missing = [name for name, op in OPS.items() if op.as_kernel and name not in offered]
    raise_all(LoweringError, "ops that need a kernel, and no installed package offers one", missing)
    return {
        name: offered[name].bind(op, chooser, as_launches=True) if op.as_kernel else _on_a_gpu(op)
        for name, op in OPS.items()
    }


def _kernels_of_a_gpu() -> Mapping[str, Kernel]:
    """The installed kernels. Raises LoweringError as `registry.kernels`, and naming each op that would read MXFP4
    blocks in the order of the checkpoint: loading a runner interleaves them."""
    offered = kernels()
    wrong = []
    for name, op in OPS.items():
        matrices = op.expert_matrices
        if name in offered and offered[name].interleaved != matrices:
            found = offered[name].interleaved
            wrong.append(f"{name}: its kernel declares interleaved={found!r}, expected {matrices!r}")
        elif name not in offered and matrices and not (op.parts or op.serves_everywhere):
            wrong.append(f"{name}: has no kernel, and its reference takes no interleaved blocks; install one")
    raise_all(LoweringError, "kernels of a GPU take interleaved MXFP4 blocks", wrong)
    return offered


def _on_a_gpu(op: Op) -> Callable[..., Any]:
    """The reference of an op without a kernel, where MXFP4 codes are interleaved. Only smaller ops that have a kernel
    may read these."""
    if not op.serves_everywhere:
        return op.reference

    def implementation(*args: Any, **kwargs: Any) -> Any:
        given = op.arguments(args, kwargs)
        names = [f"{matrix}_weight" for matrix in op.expert_matrices if is_mxfp4(given[f"{matrix}_scales"])]
        return op.reference(**given | {name: deinterleave(given[name]) for name in names})

    return implementation


def lower(traced: TracedProgram, implementations: Implementations) -> TracedProgram:
    """The program with every gptoss:: op replaced. Raises LoweringError naming the ops that remain."""
    overloads = {OPS[name].overload: implementation for name, implementation in implementations.items()}
    kept = {overload for overload, implementation in overloads.items() if overload is implementation}
    replaced = {overload: implementation for overload, implementation in overloads.items() if overload not in kept}
    exported = traced.exported
    while any(node.target in replaced for node in exported.graph.nodes):
        exported = torch.export.export(
            _Replacing(exported, replaced),
            exported.example_inputs[0],
            strict=False,
            dynamic_shapes={"arguments": traced.dynamic_shapes},
        )
    remaining = sorted(
        {
            f"{node.target} ({node.name})"
            for node in exported.graph.nodes
            if is_op(node.target, "gptoss") and node.target not in kept
        }
    )
    raise_all(LoweringError, f"program {traced.name}: ops that nothing implements for this target", remaining)
    return dataclasses.replace(traced, exported=exported)


class _Replacing(torch.nn.Module):
    """Runs a program's graph with some of its ops computed by something else."""

    def __init__(self, exported: ExportedProgram, replaced: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._interpreter = [_Interpreter(exported.module(check_guards=False), replaced)]  # a list, so no submodule

    def forward(self, *arguments: Any) -> Any:
        return self._interpreter[0].run(*arguments)


class _Interpreter(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, replaced: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__(module)
        self._replaced = replaced

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(self._replaced.get(target, target), args, kwargs)
