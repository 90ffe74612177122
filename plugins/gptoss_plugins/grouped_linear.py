"""gptoss_triton::grouped_linear: `gptoss::grouped_linear` for NVIDIA GPUs, in Triton.

The contract (sorted rows, formats, `transposed`) is in gptoss_export/model/ops/grouped_linear.py. This file has the
product with the matrices as they are, grouped_linear_transposed.py that with the transposed ones.

The product is that of the experts of a chunk (experts_many.py): weights are the left operand, and a block of lines of x
are the columns. `stored_product` multiplies, so a weight is unpacked once for each block. x is brought into the order
of the words by a kernel of its own, which takes 4 to 9 % of the time of a product of gpt-oss-20b; plain matrices need
none. Programs of one block follow each other, then come the other blocks of the same expert: x and the weights stay in
the L2 cache. A block that is filled to a half or less is computed by a half.

LoRA factors are plain matrices with a low rank as rows or columns. Their time is that of reading and writing lines, so
a program has few lines and there are more programs.

Limits: those of experts_many.py. By default the tiles are those that were measured for experts with as many pairs; what
is made for low ranks is by reasoning.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments
from gptoss_export.model.ops.grouped_linear import columns_of

from .arch import has_large_products
from .expert_rows import half_of, matrix_of_expert, rows_of_block, store_zeros
from .experts_many import TILE_OPTIONS, Block, Tile, tiles_for
from .grouped_linear_transposed import Addends, Columns, launch_transposed, transposed_space
from .grouping import blocks_for, halves_for
from .mxfp4_words import arrange_words
from .stored import PLAIN, Stored, as_pointers, stored_as
from .stored_product import order_for, product_constants, stored_product

LOW_RANK = 64  # a matrix with fewer rows or columns than this is taken for a LoRA factor


class Shape(NamedTuple):
    """Sizes of a call: rows of x, experts, rows and columns of a matrix."""

    lines: int
    experts: int
    rows: int
    columns: int


@triton.jit
def _tile(
    x,
    weight,
    scales,
    table,
    bias,
    added,
    out,
    row,
    line,
    stop,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS: tl.constexpr,
    ADDED: tl.constexpr,
):
    """Results `row` [R] of the lines `line` [L] that are before `stop`, of one expert, whose weights are given."""
    there = line < stop
    result = stored_product(
        x,
        line,
        there,
        weight,
        scales,
        table,
        tl.minimum(row, ROWS - 1),
        COLUMNS,
        X_STRIDE,
        WORDS,
        FORMAT,
        GROUP,
        PAIRED,
        ASSEMBLY,
        PRECISION,
        ASYNC,
        WIDE,
    )
    cells = line.to(tl.int64)[None, :] * ROWS + row[:, None]
    inside = there[None, :] & (row < ROWS)[:, None]
    if BIAS:
        result += tl.load(bias + tl.minimum(row, ROWS - 1)[:, None]).to(tl.float32)
    if ADDED:
        result += tl.load(added + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + cells, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grouped_linear(
    x,
    weight,
    scales,
    table,
    bias,
    added,
    ends,
    out,
    LINES: tl.constexpr,
    EXPERTS: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVES: tl.constexpr,
    TILE: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    ASYNC: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS: tl.constexpr,
    ADDED: tl.constexpr,
):
    """TILE results of each line of a block: out [LINES, ROWS]. The matrices are [ROWS, COLUMNS]."""
    tile, block = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, COUNT)
    end = tl.load(ends + number, mask=number < EXPERTS, other=0)
    start = tl.load(ends + number - 1, mask=(number > 0) & (number < EXPERTS), other=0)
    expert, begin, stop = rows_of_block(start, end, block, LINES, EXPERTS, BLOCK)
    if begin >= stop:
        return
    row = tile * TILE + tl.arange(0, TILE)
    if expert >= EXPERTS:
        store_zeros(out, begin + tl.arange(0, BLOCK), stop, row, ROWS)
        return
    weight, scales = matrix_of_expert(weight, scales, expert, ROWS * COLUMNS, FORMAT, GROUP)
    if BIAS:
        bias += expert * ROWS
    half = half_of(stop - begin, BLOCK, HALVES)
    for halves in tl.static_range(HALVES):
        if half == halves:
            _tile(
                x,
                weight,
                scales,
                table,
                bias,
                added,
                out,
                row,
                begin + tl.arange(0, BLOCK // (1 + halves)),
                stop,
                ROWS,
                COLUMNS,
                X_STRIDE,
                WORDS,
                FORMAT,
                GROUP,
                PAIRED,
                ASSEMBLY,
                PRECISION,
                ASYNC,
                WIDE,
                BIAS,
                ADDED,
            )


def _launch(
    x: torch.Tensor,
    matrix: tuple[torch.Tensor, ...],
    stored: Stored,
    addends: Addends,
    ends: torch.Tensor,
    shape: Shape,
    block: Block,
    tile: Tile,
    arch: str,
) -> torch.Tensor:
    x = x.contiguous() if stored.form == PLAIN.value else arrange_words(x, order_for(stored, tile.words))
    out = x.new_empty((shape.lines, shape.rows))
    blocks = blocks_for(shape.lines, shape.experts + 1, block.pairs)
    wrap_triton(_grouped_linear)[(triton.cdiv(shape.rows, tile.rows), blocks)](
        x,
        *matrix,
        *addends.pointers(matrix[0]),
        ends,
        out,
        LINES=shape.lines,
        EXPERTS=shape.experts,
        COUNT=triton.next_power_of_2(shape.experts),
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        X_STRIDE=x.size(1),
        BLOCK=block.pairs,
        HALVES=halves_for(block.pairs),
        TILE=tile.rows,
        WORDS=tile.words,
        **product_constants(stored, x.dtype, arch),
        WIDE=x.numel() >= 2**31,
        **addends.constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@triton_op("gptoss_triton::grouped_linear", mutates_args={})
def grouped_linear(
    x: torch.Tensor,
    matrix_weight: torch.Tensor,
    matrix_scales: torch.Tensor | None,
    matrix_table: torch.Tensor | None,
    bias: torch.Tensor | None,
    added: torch.Tensor | None,
    ends: torch.Tensor,
    transposed: bool,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::grouped_linear`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    shape = _shape(x, matrix_weight, matrix_scales)
    stored = stored_as(matrix_scales, shape.columns)
    matrix, addends = as_pointers(matrix_weight, matrix_scales, matrix_table), Addends(bias, added)
    if transposed:
        block, columns = unflatten(config, Block, Columns)
        return launch_transposed(x, matrix, stored, addends, ends, *shape[1:], block, columns, arch)
    block, tile = unflatten(config, Block, Tile)
    return _launch(x, matrix, stored, addends, ends, shape, block, tile, arch)


def _shape(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None) -> Shape:
    return Shape(x.size(0), weight.size(0), weight.size(1), columns_of(weight, scales))


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call, which are others for transposed matrices."""
    x, scales = arguments["x"], arguments["matrix_scales"]
    shape = _shape(x, arguments["matrix_weight"], scales)
    stored = stored_as(scales, shape.columns)
    if arguments["transposed"]:
        return transposed_space(stored, *shape, x.dtype, arch)
    return _space(stored, shape, x.dtype, arch)


def _space(stored: Stored, shape: Shape, dtype: torch.dtype, arch: str) -> ConfigSpace:
    lines, _, tile = tiles_for(stored, shape.lines / shape.experts, dtype)
    if tile.rows * lines >= 128 * 128 and not has_large_products(arch):
        tile = tile._replace(warps=8)
    if stored.form == PLAIN.value:
        if min(shape.rows, shape.columns) <= LOW_RANK:
            lines, tile = min(lines, 64), tile._replace(warps=4)
        fewest = 16  # rows and columns of a product on tensor cores
        tile = tile._replace(
            rows=min(tile.rows, max(fewest, triton.next_power_of_2(shape.rows))),
            words=min(tile.words, max(fewest, triton.next_power_of_2(shape.columns)) // 8),
        )
    return ConfigSpace(
        name=stored.space_name("grouped_linear"),
        shape=stored.shape(dtype, **shape._asdict()),
        scaled=("lines",),
        default={"block": Block(lines), "product": tile},
        options={"block": {"pairs": (16, 32, 64, 128, 256)}, "product": TILE_OPTIONS},
    )


KERNEL = Kernel(grouped_linear, config_space, interleaved=("matrix",))
