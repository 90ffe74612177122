"""What a program is called with and what it returns: tensors with a name, a role, a shape and a dtype.

Imports no torch, so that an artifact can be read where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """data: a buffer of the caller's; factor: a LoRA factor of the caller's, or its gradient; table: the pages of all
    slots, read only, shared by programs; cache: read and written in place, shared; state: what all slots choose their
    tokens by, shared, the counts written in place; weight: read only, shared; adapter: read only, shared, written when
    an adapter is loaded or chosen."""

    DATA = "data"
    FACTOR = "factor"
    TABLE = "table"
    CACHE = "cache"
    STATE = "state"
    WEIGHT = "weight"
    ADAPTER = "adapter"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a program, contiguous.

    shape  None: a number that is the same in all tensors of a call: of a cache the pool's pages, of data the rows
    dtype  torch's name without `torch.`
    """

    name: str
    role: Role
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.role} {self.kind}"

    @property
    def kind(self) -> str:
        """dtype and shape, such as `float32 [rows, 512]`."""
        free = "pages" if self.role == Role.CACHE else "rows"
        return f"{self.dtype} [{', '.join(free if size is None else str(size) for size in self.shape)}]"

    def sizes(self, free: int) -> tuple[int, ...]:
        """The shape, where the pool has so many pages, or the call so many rows."""
        return tuple(free if size is None else size for size in self.shape)


@dataclass(frozen=True)
class Signature:
    """The call of a program: its inputs and outputs, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def inputs_of(self, role: Role) -> tuple[TensorSpec, ...]:
        """The inputs of one role, in order."""
        return tuple(item for item in self.inputs if item.role == role)
