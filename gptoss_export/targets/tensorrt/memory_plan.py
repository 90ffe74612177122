"""Which memory each tensor of a program has: an input, a result of the call, or an offset in the arena.

A tensor of the arena keeps its memory from the first part that writes it to the last part that reads it. The largest
tensors get their offsets first, each the lowest offset that is free for that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.fx import Node

from ...errors import LoweringError
from .partition import Launch, Part, owner, program_results
from .schedule import ALIGNMENT, ARENA, INPUT, OUTPUT, Reference


@dataclass(frozen=True)
class MemoryPlan:
    """A reference for every tensor that a part is bound to, and the bytes of the arena."""

    references: dict[Node, Reference]
    arena: int


@dataclass(frozen=True)
class _Allocation:
    """Bytes `start` to `end` of the arena, taken while parts `first` to `last` run."""

    start: int
    end: int
    first: int
    last: int


def plan_memory(exported: ExportedProgram, parts: Sequence[Part]) -> MemoryPlan:
    """Give every tensor of a partitioned program its memory.

    Raises LoweringError where a result shares the memory of an input or of another result.
    """
    references = {node: Reference(INPUT, index) for index, node in enumerate(program_inputs(exported))}
    for index, node in enumerate(program_results(exported)):
        if owner(node) in references:
            raise LoweringError(f"result {index} ({node.name}) shares memory with {references[owner(node)]}")
        references[owner(node)] = Reference(OUTPUT, index)
    lives: dict[Node, tuple[int, int]] = {}  # the first and the last part that use a tensor
    for index, part in enumerate(parts):
        for node in bound_tensors(part):
            if node not in references:
                lives[node] = lives.get(node, (index, index))[0], index
    allocations: list[_Allocation] = []
    for node, (first, last) in sorted(lives.items(), key=lambda item: -_bytes(item[0])):
        size = -(-_bytes(node) // ALIGNMENT) * ALIGNMENT
        offset = _lowest_offset(size, [taken for taken in allocations if taken.first <= last and first <= taken.last])
        allocations.append(_Allocation(offset, offset + size, first, last))
        references[node] = Reference(ARENA, offset)
    return MemoryPlan(references, max((taken.end for taken in allocations), default=0))


def program_inputs(exported: ExportedProgram) -> list[Node]:
    """The inputs of a program, in order."""
    return [node for node in exported.graph.nodes if node.op == "placeholder"]


def bound_tensors(part: Part) -> tuple[Node, ...]:
    """The tensors of a part, in the order of its parameters."""
    return tuple(part.tensors.values()) if isinstance(part, Launch) else (*part.inputs, *part.outputs)


def _lowest_offset(size: int, allocations: Sequence[_Allocation]) -> int:
    """The first gap of `size` bytes between allocations that may overlap each other."""
    offset = 0
    for taken in sorted(allocations, key=lambda taken: taken.start):
        if offset + size <= taken.start:
            break
        offset = max(offset, taken.end)
    return offset


def _bytes(node: Node) -> int:
    value = node.meta["val"]
    return max(value.numel() * value.element_size(), 1)
