"""Cuts a lowered program at its kernel launches: engine segments, and launches between them, in order.

A lowered program holds plain aten nodes and launches of kernels (`triton_kernel_wrapper_mutation`, which tracing
makes of a kernel's launch). The aten nodes between two launches are one segment. Reshapes are free: what is only
another view of the same memory belongs to whoever reads it, so that neither a launch nor another segment waits
for an engine that would do nothing.

A large product of one row begins a segment too. Inside of one, TensorRT for RTX fuses what makes the row into the product
and computes it anew for every row of weights, which costs more than writing it down once.

Segments of equal structure have equal keys, and one engine serves them all: weights, caches and results are
bound by address. So the layers of a model need as many engines as there are kinds of them.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation
from torch.export import ExportedProgram
from torch.fx import Node

from ...errors import LoweringError, raise_all

aten = torch.ops.aten
RESHAPES = frozenset({
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
    aten._unsafe_view.default, aten.alias.default, aten.detach.default,
})  # fmt: skip
BUFFERS = frozenset({aten.new_empty.default, aten.empty.memory_format, aten.empty_like.default})
_LARGE = 1 << 20  # weights of a product
_NOTHING = frozenset({aten._assert_tensor_metadata.default})  # torch checks itself


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel. Tensor arguments are nodes that own memory (no reshapes)."""

    name: str
    kernel: Any
    arguments: Mapping[str, Any]  # by the kernel's own names; nodes, and constants
    grid: tuple[int, ...]

    @cached_property
    def tensors(self) -> dict[str, Node]:
        return {name: value for name, value in self.arguments.items() if isinstance(value, Node)}


@dataclass(frozen=True)
class Segment:
    """Nodes that become one engine, in order; what they read from outside, and what outside reads of them."""

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @cached_property
    def key(self) -> str:
        """Equal for segments that one engine can compute."""
        place = {node: f"in{index}" for index, node in enumerate(self.inputs)}
        place |= {node: f"n{index}" for index, node in enumerate(self.nodes)}

        def spell(value: Any) -> str:
            if isinstance(value, Node):
                return place[value]
            if isinstance(value, list | tuple):
                return f"[{', '.join(map(spell, value))}]"
            return repr(value)

        lines = [f"{place[node]} {describe(node)}" for node in self.inputs]
        lines += [
            f"{place[node]} = {node.target}({', '.join(map(spell, node.args))}; "
            f"{', '.join(f'{name}={spell(value)}' for name, value in sorted(node.kwargs.items()))}) {describe(node)}"
            for node in self.nodes
        ]
        lines.append(spell(self.outputs))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def describe(node: Node) -> str:
    """Shape and dtype of a node's value, or of each of its values."""
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else (value,)
    return ", ".join(f"{str(item.dtype).removeprefix('torch.')} {list(item.shape)}" for item in values)


def owner(node: Node) -> Node:
    """The node whose memory this one is a view of."""
    while node.target in RESHAPES:
        node = node.args[0]
    return node


def cut(exported: ExportedProgram, program: str) -> list[Segment | Launch]:
    """Segments and launches of a program. Raises LoweringError where a launch could not read a tensor in place."""
    parts = _parts(exported)
    launches = [part for part in parts if isinstance(part, Launch)]
    raise_all(LoweringError, f"program {program}: kernels that cannot be launched", _violations(launches))
    run_of = {node: index for index, part in enumerate(parts) if not isinstance(part, Launch) for node in part}
    read = {owner(node) for node in _outputs(exported)} | {
        node for launch in launches for node in launch.tensors.values()
    }
    for node, index in run_of.items():
        read |= {base for base in map(owner, node.all_input_nodes) if run_of.get(base, index) != index}
    steps: list[Segment | Launch] = []
    for part in parts:
        if isinstance(part, Launch):
            steps.append(part)
        elif part:
            steps.append(_segment(part, tuple(node for node in part if node in read)))
    return steps


def _parts(exported: ExportedProgram) -> list[list[Node] | Launch]:
    """Launches, and the nodes of each segment before, between and after them."""
    run: list[Node] = []
    parts: list[list[Node] | Launch] = [run]
    of: dict[Node, list[Node]] = {}
    for node in exported.graph.nodes:
        if node.op != "call_function" or node.target in RESHAPES | BUFFERS | _NOTHING:
            continue
        if node.target is triton_kernel_wrapper_mutation:
            run = []
            parts += [_launch(node), run]
            continue
        if _is_large_product_of_one_row(node) and of.get(owner(node.args[0])) is run:
            run = []
            parts.append(run)
        # An item of several results stays with what makes them.
        of[node] = of[node.args[0]] if node.target is operator.getitem else run
        of[node].append(node)
    return parts


def _is_large_product_of_one_row(node: Node) -> bool:
    if node.target is not aten.linear.default:
        return False
    result, weight = node.meta["val"], node.args[1].meta["val"]
    return result.numel() == result.size(-1) and weight.numel() >= _LARGE


def _launch(node: Node) -> Launch:
    arguments = {**node.kwargs["kwargs"], **kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])}
    arguments = {name: owner(value) if isinstance(value, Node) else value for name, value in arguments.items()}
    kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
    (grid,) = node.kwargs["grid"]
    return Launch(node.name, kernel, arguments, tuple(grid))


def _violations(launches: list[Launch]) -> Iterator[str]:
    for launch in launches:
        for name, node in launch.tensors.items():
            if not node.meta["val"].is_contiguous():
                yield f"{launch.name}: argument {name} ({node.name}) is not contiguous"


def _segment(run: list[Node], outputs: tuple[Node, ...]) -> Segment:
    nodes: dict[Node, None] = {}
    inputs: dict[Node, None] = {}
    inside = set(run)

    def take(node: Node) -> None:
        if node in nodes or node in inputs:
            return
        if node in inside or node.target in RESHAPES:
            for argument in node.all_input_nodes:
                take(argument)
            nodes[node] = None
        else:
            inputs[node] = None

    for node in run:
        take(node)
    return Segment(tuple(nodes), tuple(inputs), outputs)


def _outputs(exported: ExportedProgram) -> list[Node]:
    (node,) = (node for node in exported.graph.nodes if node.op == "output")
    return list(node.all_input_nodes)
