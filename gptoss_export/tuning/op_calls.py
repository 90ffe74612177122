"""The calls of kernels that the programs of a model make.

The programs are traced as a build traces them, and the ops in their graphs are looked at twice: as they are, and with the
larger ones opened, since a target may compile either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..model.config import ModelConfig
from ..compiler.export import Program, Shapes, trace
from ..kernels.kernel import Cut, Kernel
from ..compiler.lower import kernels, lower
from ..model.ops import OPS


@dataclass(frozen=True)
class Call:
    """One op as a program calls it: argument names, and fake tensors or constants."""

    op: str
    kernel: Kernel
    cut: Cut
    arguments: dict[str, Any]


def calls(config: ModelConfig, shapes: Shapes, dtype: torch.dtype) -> list[Call]:
    """Every call whose launches can be cut, once for each shape."""
    offered = kernels()
    opened = {name: op.reference if op.parts else op.overload for name, op in OPS.items()}
    found: dict[str, Call] = {}
    for trace_now in trace(_short(config), shapes, dtype, torch.device("cpu")).values():
        program = trace_now()
        for name, arguments in (*_ops(lower(program, opened)), *_ops(program)):
            kernel = offered[name]
            cut = kernel.cut(*arguments.values()) if kernel.cut else None
            if cut is not None:
                found.setdefault(str(cut), Call(name, kernel, cut, arguments))
    return list(found.values())


def _short(config: ModelConfig) -> ModelConfig:
    """The model with as many layers as it takes to have every kind."""
    kinds = config.layer_types
    count = next(count for count in range(1, len(kinds) + 1) if set(kinds[:count]) == set(kinds))
    return replace(config, num_hidden_layers=count, layer_types=kinds[:count])


def _ops(program: Program) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of each gptoss:: node."""
    names = {op.overload: name for name, op in OPS.items()}
    for node in program.exported.graph.nodes:
        if node.target in names:
            values = [value.meta["val"] if isinstance(value, torch.fx.Node) else value for value in node.args]
            parameters = [argument.name for argument in node.target._schema.arguments]
            yield names[node.target], dict(zip(parameters, values, strict=True))
