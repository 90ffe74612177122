"""Rows of a matrix times few vectors: what the fused products of a decode step share.

At batch 1 a product is as fast as its matrix comes out of memory. So a program owns a few whole rows, asks
for all of them at once (`load_rows`, before anything the kernel has to wait for), and then multiplies them
with as many vectors as there are tokens (`dot_rows`); the vectors come out of the caches of the chip. Sums
are float32. Rows past the end of the matrix are read as its last one; the caller does not store them.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

FEW_TOKENS = 8  # beyond, tensor cores pay


class Rows(NamedTuple):
    """How a launch is cut: rows of a program, elements of a row at a time, warps."""

    rows: int
    length: int
    warps: int

    def fit(self, length: int) -> Rows:
        """The same for rows that are shorter than a piece."""
        return self._replace(length=min(self.length, max(32, triton.next_power_of_2(length))))


ROW_OPTIONS = {"rows": (1, 2, 4, 8, 16), "length": (256, 512, 1024, 2048), "warps": (1, 2, 4, 8)}


def few(tokens: int) -> bool:
    return tokens <= FEW_TOKENS


@triton.jit
def load_rows(weight, row, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `row` [R] of a matrix [.., LENGTH], as pieces [R, BLOCK]."""
    pieces = ()
    lines = row.to(tl.int64)[:, None] * LENGTH
    for start in tl.static_range(0, LENGTH, BLOCK):
        k = start + tl.arange(0, BLOCK)
        if start + BLOCK <= LENGTH:
            piece = tl.load(weight + lines + k[None, :], cache_modifier=".cg")
        else:
            piece = tl.load(
                weight + lines + k[None, :], mask=(k < LENGTH)[None, :], other=0.0, cache_modifier=".cg"
            )
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

    The norm's division is done on the sums: the vector is read once."""
    acc = tl.zeros(pieces[0].shape, tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(len(pieces)):
        k = i * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + k, mask=k < LENGTH, other=0.0)
        squares += value * value
        value *= tl.load(norm_weight + k, mask=k < LENGTH, other=0.0).to(tl.float32)
        acc += pieces[i].to(tl.float32) * value[None, :]
    return tl.sum(acc, 1) * tl.rsqrt(tl.sum(squares, 0) / LENGTH + EPS)
