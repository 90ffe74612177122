"""A matrix times one vector: what the fused products of a decode step of one sequence share.

At batch 1 the time of a product is the time to read its matrix. So each program owns a few whole rows. It loads all
of them at once (`load_rows`), before anything that the kernel has to wait for. Then it multiplies them with the vector
(`dot_rows`), which it reads from the L2 cache. Sums are float32. Rows past the end of the matrix are read as the last
row; the caller does not store their results. Several vectors are a batch (dense_tiles.py).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    """Launch config of a product: rows of a program, elements of a row that are loaded at a time, warps."""

    rows: int
    length: int
    warps: int

    def for_rows_of(self, length: int) -> Rows:
        """The same config for rows of `length` elements, which may be shorter than one load."""
        return self._replace(length=min(self.length, max(32, triton.next_power_of_2(length))))


ROW_OPTIONS = {"rows": (1, 2, 4, 8, 16), "length": (256, 512, 1024, 2048), "warps": (1, 2, 4, 8)}


@triton.jit
def load_rows(weight, row, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `row` [R] of a matrix [.., LENGTH], as pieces [R, BLOCK]; 0 past the end of a row."""
    pieces = ()
    lines = row.to(tl.int64)[:, None] * LENGTH
    for start in tl.static_range(0, LENGTH, BLOCK):
        k = start + tl.arange(0, BLOCK)
        if start + BLOCK <= LENGTH:
            piece = tl.load(weight + lines + k[None, :], cache_modifier=".cg")
        else:
            piece = tl.load(weight + lines + k[None, :], mask=(k < LENGTH)[None, :], other=0.0, cache_modifier=".cg")
        pieces = pieces + (piece,)
    return pieces


@triton.jit
def dot_rows(pieces, x, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """[R] float32: the rows times the vector `x` [LENGTH]."""
    acc = tl.zeros(pieces[0].shape, tl.float32)
    for i in tl.static_range(len(pieces)):
        k = i * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + k, mask=k < LENGTH, other=0.0).to(tl.float32)
        acc += pieces[i].to(tl.float32) * value[None, :]
    return tl.sum(acc, 1)


@triton.jit
def dot_rows_of_norm(pieces, x, norm_weight, LENGTH: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr):
    """[R] float32: the rows times RMSNorm of the vector `x` [LENGTH] float32.

    The sums are divided by the norm, so the vector is read once.
    """
    acc = tl.zeros(pieces[0].shape, tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(len(pieces)):
        k = i * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + k, mask=k < LENGTH, other=0.0)
        squares += value * value
        value *= tl.load(norm_weight + k, mask=k < LENGTH, other=0.0).to(tl.float32)
        acc += pieces[i].to(tl.float32) * value[None, :]
    return tl.sum(acc, 1) * tl.rsqrt(tl.sum(squares, 0) / LENGTH + EPS)
