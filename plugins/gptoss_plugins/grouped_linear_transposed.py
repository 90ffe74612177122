"""Sorted rows times the transposed matrix of their expert: the gradient of x in `gptoss::grouped_linear`.

    out[i] = W[e]^T x[i],   W [rows, columns],   x [lines, rows],   out [lines, columns]

The sum runs over the rows of the matrix, and codes are packed along its columns. So a word has codes of eight results.
A step takes `rows` rows of a tile of 8 `words` columns. The codes are unpacked in registers and go to shared memory as
the right operand of the product; lines of x are the left one, and come from memory in their natural order. Weights as
the left operand in registers, as in the product that is not transposed, would need two neighbouring rows of a column in
one register, whose words lie in different lines of the matrix.

The codes of a tile are in the order of the words [code, word] (mxfp4_words.py), which needs no moves of single numbers.
The results have that order too. They are brought into the natural one when the tile is finished, once for all steps.

A step of 64 rows of 128 columns for 128 lines takes 512 cycles on the tensor cores of sm_90. Unpacking takes about 150
and storing 128 of them, while the product of this program waits. So an SM holds two programs, of which one multiplies
while the other one unpacks. The order of the programs and halves of blocks are as in grouped_linear.py.

Limits: those of experts_many.py. The launch configs are by reasoning, and none has been measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.launch_config import ConfigSpace

from .arch import has_large_products, shared_memory
from .expert_rows import half_of, matrix_of_expert, rows_of_block, store_zeros
from .experts_many import Block
from .grouping import blocks_for, halves_for
from .mxfp4_words import word_factors, word_weights
from .nf4 import table_place
from .nf4_words import nf4_weights
from .stored import MXFP4, NF4, PLAIN, Stored
from .stored_product import product_constants


class Columns(NamedTuple):
    """Launch config of the product.

    words   words of a row that a program has; of a plain matrix, eight times as many columns
    rows    rows of the matrix at a time
    warps   of a program
    stages  of the software pipeline over the rows
    """

    words: int
    rows: int
    warps: int
    stages: int


class Addends(NamedTuple):
    """What is added to the results: a bias [E, .] of each expert, and a tensor as the results. None: nothing."""

    bias: torch.Tensor | None
    added: torch.Tensor | None

    def pointers(self, instead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the kernels take them; `instead` stands for what there is not, and is not read."""
        bias, added = (instead if found is None else found.contiguous() for found in self)
        return bias, added

    @property
    def constants(self) -> dict[str, bool]:
        """Which there are."""
        return {"BIAS": self.bias is not None, "ADDED": self.added is not None}


@triton.jit
def _stored_columns(
    x,
    line,
    there,
    weight,
    scales,
    table,
    tile,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[L, 8 WORDS] float32: lines [L] of x [.., ROWS] times tile number `tile` of the columns of a packed matrix."""
    COUNT: tl.constexpr = COLUMNS // 8  # words of a row
    EACH: tl.constexpr = GROUP // 8  # words of a group
    r = tl.arange(0, STEP)
    word = tile * WORDS + tl.arange(0, WORDS)
    group = tile * (WORDS // EACH) + tl.arange(0, WORDS // EACH)
    inside = (word < COUNT)[None, :]
    known = (group < COLUMNS // GROUP)[None, :]
    packed = weight.to(tl.pointer_type(tl.int32), bitcast=True) + r[:, None] * COUNT + word[None, :]
    scales += r[:, None] * (COLUMNS // GROUP) + group[None, :]
    if WIDE:
        line = line.to(tl.int64)
    x += line[:, None] * ROWS + r[None, :]
    acc = tl.zeros([line.shape[0], 8 * WORDS], tl.float32)
    place = table_place(table, ASSEMBLY)
    first = known & (r < ROWS)[:, None]
    if FORMAT == MXFP4:
        next_factor = word_factors(scales, first, PAIRED)
    else:
        next_factor = tl.load(scales, mask=first, other=0.0)
    for start in range(0, ROWS, STEP):
        if ROWS % STEP == 0:
            words = tl.load(packed + start * COUNT, mask=inside, other=0)
            values = tl.load(x + start, mask=there[:, None], other=0.0)
        else:
            left = start + r < ROWS
            words = tl.load(packed + start * COUNT, mask=inside & left[:, None], other=0)
            values = tl.load(x + start, mask=there[:, None] & left[None, :], other=0.0)
        factor = tl.broadcast_to(next_factor[:, :, None], [STEP, WORDS // EACH, EACH]).reshape(STEP, WORDS)
        ahead = scales + (start + STEP) * (COLUMNS // GROUP)
        more = known & (start + STEP + r < ROWS)[:, None]
        if FORMAT == MXFP4:
            next_factor = word_factors(ahead, more, PAIRED)
            weights = word_weights(words, factor, values.dtype, PAIRED)
        else:
            next_factor = tl.load(ahead, mask=more, other=0.0)
            weights = nf4_weights(words, factor, place, values.dtype, ASSEMBLY)
        acc = tl.dot(values, weights, acc, input_precision=PRECISION)
    if PAIRED:
        acc *= 4294967296.0  # 2^32
    return acc


@triton.jit
def _plain_columns(
    x,
    line,
    there,
    weight,
    tile,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The same for a plain matrix and WIDTH columns, in the natural order."""
    r = tl.arange(0, STEP)
    column = tile * WIDTH + tl.arange(0, WIDTH)
    weight += r[:, None] * COLUMNS + column[None, :]
    if WIDE:
        line = line.to(tl.int64)
    x += line[:, None] * ROWS + r[None, :]
    acc = tl.zeros([line.shape[0], WIDTH], tl.float32)
    for start in range(0, ROWS, STEP):
        left = start + r < ROWS
        weights = tl.load(weight + start * COLUMNS, mask=(column < COLUMNS)[None, :] & left[:, None], other=0.0)
        values = tl.load(x + start, mask=there[:, None] & left[None, :], other=0.0)
        acc = tl.dot(values, weights, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _columns_tile(
    x,
    weight,
    scales,
    table,
    bias,
    added,
    out,
    tile,
    line,
    stop,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS: tl.constexpr,
    ADDED: tl.constexpr,
):
    """Tile number `tile` of the results of the lines [L] before `stop`, of one expert, whose weights are given."""
    WIDTH: tl.constexpr = 8 * WORDS
    there = line < stop
    if FORMAT == PLAIN:
        result = _plain_columns(x, line, there, weight, tile, ROWS, COLUMNS, STEP, WIDTH, PRECISION, WIDE)
    else:
        acc = _stored_columns(
            x,
            line,
            there,
            weight,
            scales,
            table,
            tile,
            ROWS,
            COLUMNS,
            STEP,
            WORDS,
            FORMAT,
            GROUP,
            PAIRED,
            ASSEMBLY,
            PRECISION,
            WIDE,
        )
        if not (BIAS or ADDED):  # half the bytes to move, where nothing is added in float32
            acc = acc.to(out.dtype.element_ty)
        by_code = acc.reshape(line.shape[0], 8, WORDS)
        result = by_code.permute(0, 2, 1).reshape(line.shape[0], WIDTH)
    column = tile * WIDTH + tl.arange(0, WIDTH)
    cells = line.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    inside = there[:, None] & (column < COLUMNS)[None, :]
    if BIAS:
        result += tl.load(bias + tl.minimum(column, COLUMNS - 1)[None, :]).to(tl.float32)
    if ADDED:
        result += tl.load(added + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + cells, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grouped_linear_transposed(
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
    BLOCK: tl.constexpr,
    HALVES: tl.constexpr,
    STEP: tl.constexpr,
    WORDS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIRED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS: tl.constexpr,
    ADDED: tl.constexpr,
):
    """8 WORDS results of each line of a block: out [LINES, COLUMNS]. The matrices are [ROWS, COLUMNS]."""
    tile, block = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, COUNT)
    end = tl.load(ends + number, mask=number < EXPERTS, other=0)
    start = tl.load(ends + number - 1, mask=(number > 0) & (number < EXPERTS), other=0)
    expert, begin, stop = rows_of_block(start, end, block, LINES, EXPERTS, BLOCK)
    if begin >= stop:
        return
    if expert >= EXPERTS:
        store_zeros(out, begin + tl.arange(0, BLOCK), stop, tile * (8 * WORDS) + tl.arange(0, 8 * WORDS), COLUMNS)
        return
    weight, scales = matrix_of_expert(weight, scales, expert, ROWS * COLUMNS, FORMAT, GROUP)
    if BIAS:
        bias += expert * COLUMNS
    half = half_of(stop - begin, BLOCK, HALVES)
    for halves in tl.static_range(HALVES):
        if half == halves:
            _columns_tile(
                x,
                weight,
                scales,
                table,
                bias,
                added,
                out,
                tile,
                begin + tl.arange(0, BLOCK // (1 + halves)),
                stop,
                ROWS,
                COLUMNS,
                STEP,
                WORDS,
                FORMAT,
                GROUP,
                PAIRED,
                ASSEMBLY,
                PRECISION,
                WIDE,
                BIAS,
                ADDED,
            )


def launch_transposed(
    x: torch.Tensor,
    matrix: tuple[torch.Tensor, ...],
    stored: Stored,
    addends: Addends,
    ends: torch.Tensor,
    experts: int,
    rows: int,
    columns: int,
    block: Block,
    config: Columns,
    arch: str,
) -> torch.Tensor:
    """[lines, columns]: launches the kernel. matrix: weight, scales and table, as kernels take them."""
    x, lines = x.contiguous(), x.size(0)
    out = x.new_empty((lines, columns))
    constants = product_constants(stored, x.dtype, arch)
    del constants["ASYNC"]  # no operand of the product is in registers
    grid = triton.cdiv(columns, 8 * config.words), blocks_for(lines, experts + 1, block.pairs)
    wrap_triton(_grouped_linear_transposed)[grid](
        x,
        *matrix,
        *addends.pointers(matrix[0]),
        ends,
        out,
        LINES=lines,
        EXPERTS=experts,
        COUNT=triton.next_power_of_2(experts),
        ROWS=rows,
        COLUMNS=columns,
        BLOCK=block.pairs,
        HALVES=halves_for(block.pairs),
        STEP=config.rows,
        WORDS=config.words,
        **constants,
        WIDE=x.numel() >= 2**31,
        **addends.constants,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out


def transposed_space(
    stored: Stored, lines: int, experts: int, rows: int, columns: int, dtype: torch.dtype, arch: str
) -> ConfigSpace:
    """The launch configs for matrices [rows, columns] of so many experts, and x [lines, rows]."""
    plain = stored.form == PLAIN.value
    warps = 4 if has_large_products(arch) else 8
    config = Columns(words=16, rows=64, warps=warps, stages=4 if shared_memory(arch) >= 160 * 1024 else 3)
    block = min(128, max(16, triton.next_power_of_2(triton.cdiv(lines, experts))))
    if dtype == torch.float32:  # no tensor cores: products run on FMA units and take their operands from registers
        config, block = Columns(words=8 if stored.form == NF4.value else 4, rows=32, warps=4, stages=2), min(block, 64)
    if stored.form == NF4.value:  # unpacking takes more registers, and more warps have less of it each
        config = config._replace(warps=8)
    if plain:
        fewest = 16  # rows and columns of a product on tensor cores
        config = config._replace(
            words=min(config.words, max(fewest, triton.next_power_of_2(columns)) // 8),
            rows=min(config.rows, max(fewest, triton.next_power_of_2(rows))),
            stages=min(config.stages, 3),  # so that an SM of sm_90 holds two programs
        )
        if 8 * config.words < 128 or config.rows < 64:  # a low rank: the time is that of reading and writing lines
            block, config = min(block, 64), config._replace(warps=4)
    return ConfigSpace(
        name=stored.space_name("grouped_linear_transposed"),
        shape=stored.shape(dtype, lines=lines, experts=experts, rows=rows, columns=columns),
        scaled=("lines",),
        default={"block": Block(block), "product": config},
        options={
            "block": {"pairs": (16, 32, 64, 128, 256)},
            "product": {"words": (8, 16, 32), "rows": (32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4)},
        },
    )
