"""Where the tensors of a program lie: its inputs, its results, and a place in the arena for all between.

A tensor of the arena holds its place from the step that writes it first to the last that reads it. Places are
given by size, the largest first, at the lowest offset that is free for all that time.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram
from torch.fx import Node

from ...errors import LoweringError
from .partition import Launch, Segment, owner
from .schedule import ALIGNMENT, ARENA, INPUT, OUTPUT, Reference


def plan(exported: ExportedProgram, steps: Sequence[Segment | Launch]) -> tuple[dict[Node, Reference], int]:
    """A reference for every tensor that a step is bound to, and the bytes of the arena.

    Raises LoweringError where a result is no memory of its own.
    """
    places = {node: Reference(INPUT, index) for index, node in enumerate(program_inputs(exported))}
    for index, node in enumerate(results(exported)):
        if owner(node) in places:
            raise LoweringError(f"result {index} ({node.name}) shares memory with {places[owner(node)]}")
        places[owner(node)] = Reference(OUTPUT, index)
    lives: dict[Node, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        for node in bound(step):
            if node not in places:
                lives[node] = lives.get(node, (index, index))[0], index
    taken: list[tuple[int, int, int, int]] = []  # offset, end, first step, last step
    for node, (first, last) in sorted(lives.items(), key=lambda item: -_bytes(item[0])):
        size, offset = -(-_bytes(node) // ALIGNMENT) * ALIGNMENT, 0
        for start, end, begins, ends in sorted(taken):
            if begins <= last and first <= ends and offset < end:
                if offset + size <= start:
                    break
                offset = end
        taken.append((offset, offset + size, first, last))
        places[node] = Reference(ARENA, offset)
    return places, max((end for _, end, _, _ in taken), default=0)


def program_inputs(exported: ExportedProgram) -> list[Node]:
    return [node for node in exported.graph.nodes if node.op == "placeholder"]


def results(exported: ExportedProgram) -> list[Node]:
    (output,) = (node for node in exported.graph.nodes if node.op == "output")
    return list(output.args[0])


def bound(step: Segment | Launch) -> tuple[Node, ...]:
    """The tensors of a step, in the order of its parameters."""
    return tuple(step.tensors.values()) if isinstance(step, Launch) else (*step.inputs, *step.outputs)


def _bytes(node: Node) -> int:
    value = node.meta["val"]
    return max(value.numel() * value.element_size(), 1)
