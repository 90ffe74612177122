"""Weights in NF4, as bitsandbytes stores them: with and without double quantization.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314), sections 3 and 4; the tensors are those that bitsandbytes' QuantState
packs. For a matrix [rows, columns] called W:

  W                                  uint8 [rows columns / 2, 1]  two weights a byte, in the order of the matrix; the
                                                                  high half is the first
  W.absmax                           float32 [blocks]             of each block of weights
                                     or uint8 [blocks], where these are quantized too
  W.quant_map                        float32 [16]                 the value of each code
  W.nested_absmax                    float32                      of each block of absmax
  W.nested_quant_map                 float32 [256]                the value of each code of absmax
  W.quant_state.bitsandbytes__nf4    uint8                        JSON: the shape, the sizes of the blocks, and the
                                                                  offset that was taken from absmax

A weight is quant_map[code] * absmax of its block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...errors import CheckpointError
from ...json_file import parse_object
from ...model import mxfp4
from ...values import shown
from .layout import LazyTensor, Recipe, Rounding, Shape, StoredTensor, Tensors

_STATE = ".quant_state.bitsandbytes__nf4"
_SIZED = (".absmax", _STATE, ".nested_absmax")  # whose shapes the matrix does not tell
_WRITTEN_BLOCK = 32  # weights that share an absmax where we write: MXFP4's groups, so that its values are held exactly
_BYTES, _FLOAT = ("U8",), ("F32",)


def is_nf4(name: str, tensors: Tensors) -> bool:
    """Whether the weight `name` of a checkpoint is in NF4."""
    return f"{name}{_STATE}" in tensors


class Nf4Rows(NamedTuple):
    """A matrix in the form of model/nf4.py: codes [rows, columns / 2], absmax [rows, columns / group], table [16]."""

    codes: torch.Tensor
    absmax: torch.Tensor
    table: torch.Tensor


class _Flat(NamedTuple):
    """A matrix as it is stored, in blocks that run on over the ends of rows, with absmax in float32."""

    packed: torch.Tensor
    absmax: torch.Tensor
    values: torch.Tensor
    blocksize: int


@dataclass(frozen=True)
class Nf4Matrix:
    """A matrix [rows, columns] in NF4.

    absmax, state  shapes of the tensors that the matrix does not tell
    nested_absmax  the same, where absmax are quantized too; else None
    """

    name: str
    rows: int
    columns: int
    absmax: Shape
    state: Shape
    nested_absmax: Shape | None

    @staticmethod
    def of(name: str, rows: int, columns: int, tensors: Tensors) -> Nf4Matrix:
        """How a checkpoint with these tensors stores the matrix; without them, how it is written."""
        found = {end: tensors[name + end][0] for end in _SIZED if name + end in tensors}
        return Nf4Matrix(
            name,
            rows,
            columns,
            absmax=found.get(".absmax", (rows * columns // _WRITTEN_BLOCK,)),
            state=found.get(_STATE, (len(_written_state(rows, columns)),)),
            nested_absmax=found.get(".nested_absmax"),
        )

    @property
    def count(self) -> int:
        """How many tensors it is."""
        return 4 if self.nested_absmax is None else 6

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensors, in the order of `read`."""
        found = (
            StoredTensor(self.name, (self.rows * self.columns // 2, 1), _BYTES),
            StoredTensor(f"{self.name}.absmax", self.absmax, _FLOAT if self.nested_absmax is None else _BYTES),
            StoredTensor(f"{self.name}.quant_map", (16,), _FLOAT),
            StoredTensor(f"{self.name}{_STATE}", self.state, _BYTES),
        )
        if self.nested_absmax is None:
            return found
        return (
            *found,
            StoredTensor(f"{self.name}.nested_absmax", self.nested_absmax, _FLOAT),
            StoredTensor(f"{self.name}.nested_quant_map", (256,), _FLOAT),
        )

    @property
    def block(self) -> int:
        """Weights that share an absmax, by the shapes: a power of two, as bitsandbytes writes them."""
        return (
            1
            << max(
                0, math.ceil(self.rows * self.columns / max(1, self.absmax[0] if self.absmax else 1)) - 1
            ).bit_length()
        )

    def read(self, stored: Sequence[LazyTensor]) -> torch.Tensor:
        """The matrix in float32. Raises CheckpointError where the tensors contradict each other."""
        found = self._unnested(stored)
        codes = torch.stack((found.packed >> 4, found.packed & 15), dim=-1).flatten().int()
        weights = found.values[codes] * self._spread(found, 1)
        return weights.view(self.rows, self.columns)

    def in_rows(self, stored: Sequence[LazyTensor], group: int) -> Nf4Rows:
        """The matrix with an absmax for each `group` weights of a row, of which no two blocks have a part. Raises
        CheckpointError where the tensors contradict each other, or the blocks do not divide into groups."""
        found = self._unnested(stored)
        if found.blocksize % group:
            raise CheckpointError(
                f"{self.name}{_STATE}: blocks of {found.blocksize} weights, expected multiples of {group} as those of "
                "other experts; use --experts mxfp4"
            )
        codes = found.packed.view(self.rows, self.columns // 2)
        return Nf4Rows(codes, self._spread(found, group).view(self.rows, -1), found.values)

    def _unnested(self, stored: Sequence[LazyTensor]) -> _Flat:
        """The tensors, with absmax in float32."""
        packed, absmax, values, state, *nested = (tensor[:] for tensor in stored)
        facts = self._facts(bytes(state.tolist()))
        if nested:
            peaks, table = nested
            absmax = table[absmax.int()]
            absmax = absmax * _spread(peaks, facts["nested_blocksize"], absmax.numel(), 1, f"{self.name}.nested_absmax")
            absmax = absmax + facts["nested_offset"]
        return _Flat(packed.flatten(), absmax, values, facts["blocksize"])

    def _spread(self, found: _Flat, group: int) -> torch.Tensor:
        """The absmax of every `group` weights."""
        return _spread(found.absmax, found.blocksize, self.rows * self.columns, group, f"{self.name}.absmax")

    def _facts(self, state: bytes) -> dict[str, Any]:
        facts = parse_object(state, CheckpointError, subject=f"{self.name}{_STATE}")
        try:
            if list(facts["shape"]) != [self.rows, self.columns]:
                raise ValueError(f"shape {shown(facts['shape'])}, expected [{self.rows}, {self.columns}]")
            nested = self.nested_absmax is not None
            numbers = [facts["blocksize"], *([facts["nested_blocksize"]] if nested else [])]
            if not all(type(number) is int and number > 0 for number in numbers):
                raise ValueError(f"blocks of {shown(numbers)} weights, expected whole numbers above 0")
            if nested:
                float(facts["nested_offset"])
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{self.name}{_STATE}: does not describe the weight ({error})") from None
        return facts

    def store(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of a matrix of MXFP4 values: exactly, with codes and blocks as MXFP4 has them."""
        blocks, scales = mxfp4.quantize(matrix)
        packed = (blocks & 15) << 4 | blocks >> 4
        values = mxfp4.code_values(torch.arange(16))
        state = torch.tensor(list(_written_state(self.rows, self.columns)), dtype=torch.uint8)
        return packed.reshape(-1, 1), mxfp4.scale_values(scales).flatten(), values, state


def _spread(peaks: torch.Tensor, size: int, count: int, group: int, name: str) -> torch.Tensor:
    """The peaks of blocks of `size` numbers, for every `group` of `count` numbers."""
    blocks = -(-count // size)
    if peaks.numel() != blocks:
        raise CheckpointError(f"{name}: found {peaks.numel()} numbers, expected {blocks}, one for {size}")
    return peaks.repeat_interleave(size // group)[: count // group]


def _written_state(rows: int, columns: int) -> bytes:
    state = {"quant_type": "nf4", "blocksize": _WRITTEN_BLOCK, "dtype": "bfloat16", "shape": [rows, columns]}
    return json.dumps(state).encode()


@dataclass(frozen=True)
class FromNf4:
    """Converts matrices of which some are in NF4, concatenated along dimension 0, to bfloat16, in which bitsandbytes
    computes with them. A part that is no Nf4Matrix is stored as it is."""

    pieces: tuple[Nf4Matrix | StoredTensor, ...]

    def parameters(self, name: str) -> tuple[str, ...]:
        return (name,)

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        found, left = [], list(stored)
        for piece in self.pieces:
            count = piece.count if isinstance(piece, Nf4Matrix) else 1
            taken, left = left[:count], left[count:]
            found.append(piece.read(taken) if isinstance(piece, Nf4Matrix) else taken[0][:])
        return (torch.cat([part.to(torch.bfloat16) for part in found]),)

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """No layout is written so: weights outside of the experts would be rounded. Raises CheckpointError."""
        raise CheckpointError("weights outside of the experts are not written in NF4")


def _piece(part: StoredTensor, tensors: Tensors) -> Nf4Matrix | StoredTensor:
    if not is_nf4(part.name, tensors):
        return part
    rows, columns = part.shape
    return Nf4Matrix.of(part.name, rows, columns, tensors)


def with_nf4(recipes: Mapping[str, Recipe], tensors: Tensors) -> dict[str, Recipe]:
    """The recipes, where some of the plain matrices are in NF4."""
    return {name: _with_nf4(recipe, tensors) for name, recipe in recipes.items()}


def _with_nf4(recipe: Recipe, tensors: Tensors) -> Recipe:
    matrices = [part for part in recipe.parts if len(part.shape) == 2]
    if recipe.convert is not None or not any(is_nf4(part.name, tensors) for part in matrices):
        return recipe
    pieces = tuple(_piece(part, tensors) for part in recipe.parts)
    parts = [found for piece in pieces for found in (piece.parts if isinstance(piece, Nf4Matrix) else (piece,))]
    return Recipe(tuple(parts), FromNf4(pieces))
