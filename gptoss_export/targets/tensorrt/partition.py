"""Partitions a lowered program at its kernel launches: engine segments and the launches between them, in order.

A lowered program holds plain aten nodes and launches of Triton kernels. The aten nodes between two launches are one
segment. A reshape is only another view of the same memory, so it costs nothing and belongs to each segment that reads
it. Neither a launch nor another segment waits for an engine that would only reshape.

A large product of one row begins a segment too. Inside of one segment, TensorRT for RTX fuses the operators that make
the row into the product and repeats them for every row of weights, which is slower than writing the row to memory once.

Segments of equal structure have equal keys, and one engine serves them all, because weights, caches and results are
bound by address. So a model needs as many engines for its layers as it has kinds of layers.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ...compat.pytorch import arguments_of_launch, grid_of_launch, is_kernel_launch, kernel_of_launch
from ...errors import LoweringError, raise_all
from ...model.dtypes import dtype_name

aten = torch.ops.aten
_RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten._unsafe_view.default,
        aten.alias.default,
        aten.detach.default,
    }
)
# Results of kernels are allocated so; the memory plan does that here.
_ALLOCATIONS = frozenset({aten.new_empty.default, aten.empty.memory_format, aten.empty_like.default})
_CHECKS = frozenset({aten._assert_tensor_metadata.default})  # torch checked it while it traced
_LARGE = 1 << 20  # weights of a large product


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    arguments  by the kernel's names: constants, and nodes that own memory (no reshapes)
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    grid: tuple[int, ...]

    @cached_property
    def tensors(self) -> dict[str, Node]:
        """The arguments that are tensors."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Node)}


@dataclass(frozen=True)
class Segment:
    """Nodes that become one engine.

    nodes    in order
    inputs   nodes outside of the segment that it reads
    outputs  nodes of the segment that something outside of it reads
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @cached_property
    def key(self) -> str:
        """A hash of the structure. One engine can compute all segments of equal key."""
        names = {node: f"in{index}" for index, node in enumerate(self.inputs)}
        names |= {node: f"n{index}" for index, node in enumerate(self.nodes)}
        lines = [f"{names[node]} {describe(node)}" for node in self.inputs]
        lines += [f"{names[node]} = {_call(node, names)} {describe(node)}" for node in self.nodes]
        lines.append(_spelled(self.outputs, names))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


Part: TypeAlias = Segment | Launch


def partition(exported: ExportedProgram, program: str) -> list[Part]:
    """The segments and launches of a lowered program, in order.

    program: its name, for errors. Raises LoweringError naming launches that cannot read a tensor where it lies.
    """
    runs = _runs(exported)
    launches = [run for run in runs if isinstance(run, Launch)]
    raise_all(LoweringError, f"program {program}: kernels that cannot be launched", _violations(launches))
    run_of = {node: index for index, run in enumerate(runs) if not isinstance(run, Launch) for node in run}
    # Nodes that are read outside of their run.
    read = {owner(node) for node in program_results(exported)}
    read |= {node for launch in launches for node in launch.tensors.values()}
    for node, index in run_of.items():
        read |= {base for base in map(owner, node.all_input_nodes) if run_of.get(base, index) != index}
    parts: list[Part] = []
    for run in runs:
        if isinstance(run, Launch):
            parts.append(run)
        elif run:
            parts.append(_segment(run, tuple(node for node in run if node in read)))
    return parts


def program_results(exported: ExportedProgram) -> list[Node]:
    """The results of a program, in order."""
    (output,) = (node for node in exported.graph.nodes if node.op == "output")
    return list(output.args[0])


def describe(node: Node) -> str:
    """Dtype and shape of a node's value, or of each of its values."""
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else (value,)
    return ", ".join(f"{dtype_name(item.dtype)} {list(item.shape)}" for item in values)


def fixed_shape(node: Node) -> tuple[int, ...]:
    """The shape of a node's value. A cache counts as one page: what reads it gets its address and not its size."""
    return tuple(size if isinstance(size, int) else 1 for size in node.meta["val"].shape)


def owner(node: Node) -> Node:
    """The node whose memory this one is a view of."""
    while node.target in _RESHAPES:
        node = first_argument(node)
    return node


def first_argument(node: Node) -> Node:
    """The first argument of a call that takes a tensor first."""
    argument = node.args[0]
    assert isinstance(argument, Node)
    return argument


def _call(node: Node, names: Mapping[Node, str]) -> str:
    arguments = ", ".join(_spelled(value, names) for value in node.args)
    options = ", ".join(f"{name}={_spelled(value, names)}" for name, value in sorted(node.kwargs.items()))
    return f"{node.target}({arguments}; {options})"


def _spelled(value: Any, names: Mapping[Node, str]) -> str:
    if isinstance(value, Node):
        return names[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_spelled(item, names) for item in value)}]"
    return repr(value)


def _runs(exported: ExportedProgram) -> list[Launch | list[Node]]:
    """The launches in order, and before, between and after them lists of the aten nodes that compute something."""
    run: list[Node] = []
    runs: list[Launch | list[Node]] = [run]
    run_of: dict[Node, list[Node]] = {}
    for node in exported.graph.nodes:
        if node.op != "call_function" or node.target in _RESHAPES | _ALLOCATIONS | _CHECKS:
            continue
        if is_kernel_launch(node):
            run = []
            runs += [_launch(node), run]
            continue
        if _is_large_product_of_one_row(node) and run_of.get(owner(first_argument(node))) is run:
            run = []
            runs.append(run)
        # An item of several results belongs to the node that makes them.
        run_of[node] = run_of[first_argument(node)] if node.target is operator.getitem else run
        run_of[node].append(node)
    return runs


def _is_large_product_of_one_row(node: Node) -> bool:
    if node.target is not aten.linear.default:
        return False
    weight = node.args[1]
    assert isinstance(weight, Node)
    result = node.meta["val"]
    return result.numel() == result.size(-1) and weight.meta["val"].numel() >= _LARGE


def _launch(node: Node) -> Launch:
    arguments = {
        name: owner(value) if isinstance(value, Node) else value for name, value in arguments_of_launch(node).items()
    }
    return Launch(node.name, kernel_of_launch(node), arguments, grid_of_launch(node))


def _violations(launches: Sequence[Launch]) -> Iterator[str]:
    for launch in launches:
        for name, node in launch.tensors.items():
            if not node.meta["val"].is_contiguous():
                yield f"{launch.name}: argument {name} ({node.name}) is not contiguous"


def _segment(run: Sequence[Node], outputs: tuple[Node, ...]) -> Segment:
    """The segment of a run, with the reshapes that it reads."""
    nodes: dict[Node, None] = {}
    inputs: dict[Node, None] = {}
    inside = set(run)

    def take(node: Node) -> None:
        if node in nodes or node in inputs:
            return
        if node in inside or node.target in _RESHAPES:
            for argument in node.all_input_nodes:
                take(argument)
            nodes[node] = None
        else:
            inputs[node] = None

    for node in run:
        take(node)
    return Segment(tuple(nodes), tuple(inputs), outputs)
