"""A matrix times some vectors on tensor cores: what the fused products of a decode step of several sequences share.

The time of a product is the time to read its matrix, as for one vector (rows.py). So the rows of the matrix are the
left operand: there are enough of them for a tile, and the vectors are its columns. All vectors are in one tile, which
reads each row once. Each program also reads all vectors, from the L2 cache. With as many rows as vectors, both are
equally many bytes. More rows a program are less of this traffic, but fewer programs.

Vectors are normalised by a kernel of their own (`normalise`): as the right operand of a product they come straight from
memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .arch import has_dependent_launch, shared_memory
from .dependent_launch import wait_then_let_next_start

MOST_TOKENS = 128  # with more tokens a product is limited by arithmetic, and cuBLAS is faster


class DenseTile(NamedTuple):
    """Launch config of a product: rows of a program, elements of a row at a time, warps, stages of the pipeline."""

    rows: int
    length: int
    warps: int
    stages: int


DENSE_OPTIONS = {"rows": (16, 32, 64, 128), "length": (64, 128, 256), "warps": (2, 4, 8), "stages": (2, 3, 4, 5)}


def columns_for(tokens: int) -> int:
    """Columns of a tile that has all tokens: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(tokens))


def dense_default(tile: DenseTile, tokens: int, dtype: torch.dtype, arch: str) -> DenseTile:
    """`tile`, with as many of its stages as fit into shared memory. Tiles of float32, for which there are no tensor
    cores, are small."""
    if dtype == torch.float32:
        return DenseTile(rows=16, length=32, warps=4, stages=2)
    stage = (tile.rows + columns_for(tokens)) * tile.length * dtype.itemsize
    return tile._replace(stages=min(tile.stages, shared_memory(arch) // stage))


@triton.jit
def _normalise_pdl(
    x, norm_weight, out, HIDDEN: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr
):
    """RMSNorm of one token. WIDTH is HIDDEN rounded up to a power of two."""
    i = tl.arange(0, WIDTH)
    inside = i < HIDDEN
    factor = tl.load(norm_weight + i, mask=inside, other=0.0).to(tl.float32)
    zero = wait_then_let_next_start(EARLY)
    x += zero
    out += zero
    start = tl.program_id(0) * HIDDEN
    value = tl.load(x + start + i, mask=inside, other=0.0)
    value *= factor * tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + EPS)
    tl.store(out + start + i, value.to(out.dtype.element_ty), mask=inside)


def normalise(x: torch.Tensor, norm_weight: torch.Tensor, eps: float, arch: str) -> torch.Tensor:
    """RMSNorm of x [T, H] float32, in the dtype of `norm_weight` [H]."""
    tokens, hidden = x.shape
    out = x.new_empty(x.shape, dtype=norm_weight.dtype)
    wrap_triton(_normalise_pdl)[(tokens,)](
        x,
        norm_weight,
        out,
        HIDDEN=hidden,
        EPS=eps,
        WIDTH=triton.next_power_of_2(hidden),
        EARLY=has_dependent_launch(arch),
        num_warps=8,
    )
    return out


@triton.jit
def dense_product(
    x,
    weight,
    line,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[R, COLUMNS] float32: rows `line` [R] of a matrix [.., LENGTH] times x [TOKENS, LENGTH]; 0 past the last token.

    BLOCK elements of a row are taken at a time.
    """
    token = tl.arange(0, COLUMNS)
    k = tl.arange(0, BLOCK)
    rows = weight + line.to(tl.int64)[:, None] * LENGTH + k[None, :]
    x += token[:, None] * LENGTH + k[None, :]
    there = (token < TOKENS)[:, None]
    acc = tl.zeros([line.shape[0], COLUMNS], tl.float32)
    for start in range(0, LENGTH, BLOCK):
        if LENGTH % BLOCK == 0:
            values = tl.load(rows + start)
            vectors = tl.load(x + start, mask=there, other=0.0)
        else:
            inside = (start + k < LENGTH)[None, :]
            values = tl.load(rows + start, mask=inside, other=0.0)
            vectors = tl.load(x + start, mask=there & inside, other=0.0)
        acc = tl.dot(values, tl.trans(vectors), acc, input_precision=PRECISION)
    return acc


def dot_precision(dtype: torch.dtype) -> str:
    """The precision of products of float32; others have one of their own."""
    return "ieee" if dtype == torch.float32 else "tf32"
