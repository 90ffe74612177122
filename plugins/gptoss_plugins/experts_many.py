"""Experts for many pairs (a batch or a chunk): grouped products on tensor cores.

A *pair* is one (token, choice): pair = token * K + choice. With few pairs an expert, the time is that of reading and
unpacking the weights. With many, it is that of the products. In both cases the weights are the left operand, and the
pairs of one expert are the columns. Weights that are unpacked stay in the registers where that was done
(mxfp4_words.py, nf4_words.py); plain ones come from shared memory (plain_product.py). Before the products the pairs are
grouped in blocks of BLOCK_M, each of one expert (router_groups.py, or grouping.py where the experts are given).

    gate_up_many_pdl   ROWS of the 2 I rows for one block: act (experts_gate_up.py)
    down_many_pdl      ROWS of the H rows for one block: results of each pair (experts_down.py)
    sum_many_pdl       the sum over the choices of a token, times the routing weights, plus the residual

Programs of one block follow each other, so that its x stays in the L2 cache. Then come the other blocks of the same
expert, so that its weights stay there too. Blocks that are not needed have expert -1 and return at once: how many are
needed is known on the device alone.

The last block of an expert may be filled to a half or less. Then its programs compute a half.

The results of the pairs of a batch are float32. Those of a chunk are in the dtype of x, as in transformers; their sum
is float32.

Limits: H and I are multiples of 32, and of the group of NF4. In float16 the weights must fit float16, since they are
rounded to the dtype of x. For bfloat16 and MXFP4 the limits of mxfp4_words.py hold too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch.library import wrap_triton

from gptoss_export.kernels.launch_config import ConfigSpace

from .arch import has_dependent_launch
from .dense_tiles import MOST_TOKENS
from .experts_down import down_many_pdl, sum_many_pdl
from .experts_gate_up import gate_up_many_pdl
from .grouping import Grouped, halves_for
from .mxfp4_words import padded
from .rank_cells import ALONE, Shared
from .stored import MXFP4, NF4, PLAIN, Experts, Stored
from .stored_product import order_for, product_constants


class Block(NamedTuple):
    """Launch config of both products: the pairs of a block."""

    pairs: int


class Tile(NamedTuple):
    """Launch config of one of the two products.

    rows    rows of the weights that a program has
    words   words of a row at a time; of a plain matrix, eight times as many elements. NF4 needs 8 or more
    warps   of a program
    stages  of the software pipeline over a row
    """

    rows: int
    words: int
    warps: int
    stages: int


def many_pairs_space(
    stored: Stored, tokens: int, choices: int, experts: int, hidden: int, inter: int, dtype: torch.dtype
) -> ConfigSpace:
    """The launch configs of the kernels for tokens * choices pairs. By default a block has all pairs of most experts,
    up to 128."""
    pairs, gate_up, down = tiles_for(stored, tokens * choices / experts, dtype)
    return ConfigSpace(
        name=stored.space_name("experts_many"),
        shape=stored.shape(dtype, tokens=tokens, choices=choices, experts=experts, hidden=hidden, inter=inter),
        scaled=("tokens",),
        default={"block": Block(pairs), "gate_up": gate_up, "down": down},
        options={"block": {"pairs": (8, 16, 32, 64, 128)}, "gate_up": TILE_OPTIONS, "down": TILE_OPTIONS},
    )


# For up to so many pairs an expert: the pairs of a block, and the tiles of gate_up and of down. An SM holds two or more
# programs, so that one multiplies while another unpacks.
_FEWER = (
    (0.25, 8, Tile(rows=64, words=32, warps=4, stages=3), Tile(rows=32, words=32, warps=2, stages=4)),
    (5, 8, *2 * (Tile(rows=64, words=32, warps=4, stages=3),)),
    (10, 16, *2 * (Tile(rows=128, words=32, warps=8, stages=3),)),
    (24, 32, Tile(rows=128, words=16, warps=4, stages=3), Tile(rows=64, words=16, warps=4, stages=3)),
)
_TILES = {
    MXFP4.value: (
        *_FEWER,
        (48, 64, Tile(rows=128, words=8, warps=4, stages=4), Tile(rows=128, words=16, warps=8, stages=3)),
        (320, 128, Tile(rows=128, words=8, warps=4, stages=4), Tile(rows=64, words=16, warps=4, stages=3)),
        (math.inf, 128, *2 * (Tile(rows=128, words=8, warps=4, stages=4),)),
    ),
    # Unpacking takes more registers and waits longer than that of MXFP4: more warps have less of it each.
    NF4.value: (
        *_FEWER,
        (48, 64, *2 * (Tile(rows=128, words=8, warps=8, stages=4),)),
        (math.inf, 128, *2 * (Tile(rows=128, words=8, warps=8, stages=4),)),
    ),
    # Up to 16 pairs the time is that of reading: an SM holds three programs, each of which has 48 KiB on the way. With
    # more pairs a program has the largest product of which an SM holds two.
    PLAIN.value: (
        (5, 8, *2 * (Tile(rows=64, words=16, warps=4, stages=4),)),
        (10, 16, *2 * (Tile(rows=64, words=16, warps=4, stages=4),)),
        (24, 32, *2 * (Tile(rows=128, words=8, warps=4, stages=4),)),
        (48, 64, *2 * (Tile(rows=128, words=8, warps=4, stages=3),)),
        (math.inf, 128, *2 * (Tile(rows=128, words=8, warps=8, stages=3),)),
    ),
}
_SUM_WARPS = 4
TILE_OPTIONS = {"rows": (32, 64, 128, 256), "words": (8, 16, 32, 64), "warps": (2, 4, 8), "stages": (2, 3, 4)}


def tiles_for(stored: Stored, average: float, dtype: torch.dtype) -> tuple[int, Tile, Tile]:
    """For so many pairs an expert: the pairs of a block, and the tiles of gate_up and of down."""
    pairs, gate_up, down = next(tiles for most, *tiles in _TILES[stored.form] if average <= most)
    if dtype == torch.float32:  # no tensor cores: products run on FMA units and take their operands from registers
        pairs = min(pairs, 64)
        gate_up = down = Tile(rows=32, words=8 if stored.form == NF4.value else 4, warps=4, stages=2)
    return pairs, gate_up, down


def launch_many_pairs(
    x: torch.Tensor,
    grouped: Grouped,
    experts: Experts,
    block: Block,
    gate_up: Tile,
    down: Tile,
    arch: str,
    residual: torch.Tensor | None = None,
    ranks: Shared = ALONE,
) -> torch.Tensor:
    """[T, H] float32: the sum of the routed experts, over the ranks, plus `residual` [T, H] float32.

    x  [T, padded(H, order)] in the order of the words, in the dtype of the model; order: order_for(gate_up.words)
    """
    tokens, choices = grouped.shares.shape
    hidden, inter, early = experts.down_bias.size(1), experts.inter, has_dependent_launch(arch)
    order = order_for(experts.stored, down.words)  # of act
    stride = padded(inter, order)
    blocks = grouped.expert_of_block.numel()
    shared = {
        "HIDDEN": hidden,
        "INTER": inter,
        "ACT_STRIDE": stride,
        "BLOCK_M": block.pairs,
        "HALVES": halves_for(block.pairs),
        **product_constants(experts.stored, x.dtype, arch),
        "WIDE": max(x.numel(), blocks * block.pairs * stride) >= 2**31,
        "EARLY": early,
    }
    act = x.new_empty((blocks * block.pairs, stride))
    wrap_triton(gate_up_many_pdl)[(triton.cdiv(2 * inter, gate_up.rows), blocks)](
        x,
        grouped.expert_of_block,
        grouped.pair_of_row,
        *experts.gate_up,
        act,
        CHOICES=choices,
        ALPHA=experts.alpha,
        LIMIT=experts.limit,
        X_STRIDE=x.size(1),
        NEXT_WORDS=order,
        **_constants(gate_up),
        **shared,
    )
    # In float32 the results of a chunk's pairs would take a third of its memory, and their sum twice the time.
    out = x.new_empty((tokens * choices, hidden), dtype=torch.float32 if tokens <= MOST_TOKENS else x.dtype)
    wrap_triton(down_many_pdl)[(triton.cdiv(hidden, down.rows), blocks)](
        act,
        grouped.expert_of_block,
        grouped.pair_of_row,
        *experts.down,
        out,
        **_constants(down),
        **shared,
    )
    sums = grouped.shares.new_empty((tokens, hidden))
    width = max(32 * _SUM_WARPS, min(1024, triton.next_power_of_2(hidden)))  # rank_cells.py says why no less
    wrap_triton(sum_many_pdl)[(tokens, triton.cdiv(hidden, width))](
        out,
        grouped.chosen,
        grouped.shares,
        sums if residual is None else residual,
        sums if ranks.places is None else ranks.places,
        sums,
        CHOICES=choices,
        HIDDEN=hidden,
        WIDTH=width,
        RESIDUAL=residual is not None,
        EARLY=early,
        num_warps=_SUM_WARPS,
        **ranks.constants(arch),
    )
    return sums


def _constants(tile: Tile) -> dict[str, int]:
    return {"ROWS": tile.rows, "WORDS": tile.words, "num_warps": tile.warps, "num_stages": tile.stages}
