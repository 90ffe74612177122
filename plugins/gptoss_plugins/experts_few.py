"""Experts for few pairs (decode): matrix-vector kernels over the weights of the routed experts.

A *pair* is one (token, choice): pair = token * K + choice. Two things limit the speed: the bytes that are being
loaded at a time, and the instructions that unpack the weights. stored_rows.py names the modules that load and multiply
the rows of each format. A program is one or two warps with a few whole rows. It starts all of its loads before it uses
the first. So it has all of its weights in registers, and has fewer rows of plain matrices than of codes.

SwiGLU is bounded by (limit + 1) * limit, so the power of two of `act` is known before the launch.

`_gate_up_pdl` starts to work when the routing is known. `_down_pdl` may read the routing before it waits, since
`_gate_up_pdl` lets it start only after its own wait. So `_down_pdl` has its weights in registers when `act` is ready.
It sums over the choices, and over the ranks that share the model, and adds the residual.

Limits: H and I are multiples of 32, and of the group of NF4. Weights, scales and biases are contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.launch_config import ConfigSpace

from .arch import has_dependent_launch, has_inline_assembly
from .arranged import Arranged, place_of, unit_of
from .dependent_launch import wait_then_let_next_start
from .mxfp4 import swiglu
from .rank_cells import ALONE, Shared, sum_over_ranks
from .stored import MXFP4, NF4, PLAIN, Experts, Stored
from .stored_rows import dot_stored_rows, lanes_for, load_stored_rows

FEW_PAIRS = 4  # one token of 4 choices: for more, tensor cores are faster


_EVEN = 1440  # programs of a warp: 11 for each SM of a large GPU


class GateUp(NamedTuple):
    """Launch config of the first product: rows of a tile (R), tiles of a program, warps."""

    rows: int
    tiles: int
    warps: int


class Down(NamedTuple):
    """Launch config of the second product: rows of a program (R), warps."""

    rows: int
    warps: int


def few_pairs_space(
    stored: Stored, tokens: int, choices: int, experts: int, hidden: int, inter: int, dtype: torch.dtype
) -> ConfigSpace:
    """The launch configs of the two kernels for tokens * choices pairs.

    By default the first product has so many programs that they fill the SMs evenly; a rank has a part of its rows.
    """
    rows, most, down = _DEFAULTS[stored.form]
    tiles = 2 * inter * tokens * choices // (rows * _EVEN)
    return ConfigSpace(
        name=stored.space_name("experts_few"),
        shape=stored.shape(dtype, tokens=tokens, choices=choices, experts=experts, hidden=hidden, inter=inter),
        scaled=("tokens",),
        default={"gate_up": GateUp(rows, tiles=max(1, min(most, tiles)), warps=1), "down": down},
        options={
            "gate_up": {"rows": (2, 4, 8), "tiles": _TILES[stored.form], "warps": (1, 2, 4)},
            "down": {"rows": (1, 2, 4, 8), "warps": (1, 2, 4)},
        },
    )


# The rows of a tile of gate_up, its most tiles, and the config of down, which holds the rows of all choices. A warp of
# down has registers for two rows of codes. With one warp, x of NF4 stays in the threads that read it. A row of a plain
# matrix is spread over four warps.
_DEFAULTS = {
    MXFP4.value: (4, 3, Down(rows=4, warps=2)),
    NF4.value: (4, 3, Down(rows=2, warps=1)),
    PLAIN.value: (2, 8, Down(rows=1, warps=4)),
}
_MXFP4_TILES = (1, 2, 3, 4, 6)
_TILES = {MXFP4.value: _MXFP4_TILES, NF4.value: _MXFP4_TILES, PLAIN.value: (*_MXFP4_TILES, 8)}


@triton.jit
def _routing(
    weights, indices, token, EXPERTS: tl.constexpr, CHOICES: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr
):
    """Experts and weights of a token's choices, [WIDTH] each; -1 where there is none.

    With EXPERTS 0 they are given. Otherwise `weights` are the router's logits [T, EXPERTS] and `indices` are the
    tokens' positions [T], and every program chooses for itself: that is faster than waiting for one program that
    chooses. COUNT and WIDTH are EXPERTS and CHOICES rounded up to powers of two.
    """
    which = tl.arange(0, WIDTH)
    if EXPERTS == 0:
        there = which < CHOICES
        chosen = tl.load(indices + token * CHOICES + which, mask=there, other=-1).to(tl.int32)
        share = tl.load(weights + token * CHOICES + which, mask=there, other=0.0)
    else:
        expert = tl.arange(0, COUNT)
        left = tl.load(weights + token * EXPERTS + expert, mask=expert < EXPERTS, other=float("-inf"))
        position = tl.load(indices + token)
        chosen = tl.zeros([WIDTH], tl.int32)
        share = tl.zeros([WIDTH], tl.float32)
        largest = tl.max(left, 0)
        for choice in tl.static_range(CHOICES):
            best, at = tl.max(left, 0, return_indices=True)  # the first of equal values
            at = tl.minimum(at, EXPERTS - 1)  # of NaN the index is undefined
            chosen = tl.where(which == choice, at, chosen)
            share = tl.where(which == choice, tl.exp(best - largest), share)
            left = tl.where(expert == at, float("-inf"), left)
        chosen = tl.where(position >= 0, chosen, -1)
        share = share / tl.sum(share, 0)
    return chosen, share


@triton.jit
def _pick(values, choice, WIDTH: tl.constexpr):
    """Value number `choice` of [WIDTH] values, as a scalar."""
    return tl.sum(tl.where(tl.arange(0, WIDTH) == choice, values, 0), 0)


@triton.jit
def _gate_up_pdl(
    arranged,
    undo,
    routing_weights,
    expert_indices,
    weight,
    scales,
    table,
    bias,
    act,
    EXPERTS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    ACT_POWER: tl.constexpr,
    R: tl.constexpr,
    TILES: tl.constexpr,
    LANES: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    EXACT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    EARLY: tl.constexpr,
):
    """TILES tiles of R of the 2 I rows of one pair: their part of act, times ACT_POWER, in the order of the kernels."""
    zero = wait_then_let_next_start(EARLY)
    routing_weights += zero
    expert_indices += zero
    arranged += zero
    undo += zero
    act += zero
    pair = tl.program_id(1)
    token = pair // CHOICES
    chosen, _ = _routing(routing_weights, expert_indices, token, EXPERTS, CHOICES, COUNT, WIDTH)
    expert = _pick(chosen, pair % CHOICES, WIDTH).to(tl.int64)
    if expert < 0:
        return
    factor = tl.load(undo + token)
    for tile in range(TILES):
        at = tl.program_id(0) * TILES + tile
        line = expert * (2 * INTER) + tl.minimum(at * R + tl.arange(0, R), 2 * INTER - 1)
        rows = load_stored_rows(weight, scales, line, True, HIDDEN, FORMAT, GROUP, LANES)
        added = tl.load(bias + line).to(tl.float32)
        tl.debug_barrier()  # without it the assembler may delay loads until their values are used
        dots = dot_stored_rows(rows, table, arranged + token * HIDDEN, True, HIDDEN, FORMAT, LANES, EXACT, ASSEMBLY)
        hidden = tl.sum(dots, 1) * factor + added
        result = swiglu(hidden.reshape(R // 2, 2), ALPHA, LIMIT) * ACT_POWER
        i = at * (R // 2) + tl.arange(0, R // 2)
        cells = pair * INTER + place_of(i, INTER, FORMAT, EXACT)
        tl.store(act + cells, result.to(act.dtype.element_ty), mask=i < INTER)


@triton.jit
def _down_pdl(
    act,
    routing_weights,
    expert_indices,
    weight,
    scales,
    table,
    bias,
    residual,
    places,
    out,
    EXPERTS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    ACT_POWER: tl.constexpr,
    UNIT: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    EXACT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RANKS: tl.constexpr,
    BOX: tl.constexpr,
    CLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """R of the H results of one token: the sum over its choices and over the ranks, plus the residual."""
    token = tl.program_id(1)
    row = tl.program_id(0) * R + tl.arange(0, R)
    safe = tl.minimum(row, HIDDEN - 1)
    loaded = ()
    total = tl.zeros([R], tl.float32)
    chosen, share = _routing(routing_weights, expert_indices, token, EXPERTS, CHOICES, COUNT, WIDTH)
    for j in tl.static_range(CHOICES):
        expert = _pick(chosen, j, WIDTH).to(tl.int64)
        line = tl.maximum(expert, 0) * HIDDEN + safe
        loaded = loaded + (load_stored_rows(weight, scales, line, expert >= 0, INTER, FORMAT, GROUP, LANES),)
        added = tl.load(bias + line).to(tl.float32)
        total += tl.where(expert >= 0, _pick(share, j, WIDTH) * added, 0.0)
    before = tl.zeros([R], tl.float32)
    if RESIDUAL:
        before += tl.load(residual + token * HIDDEN + safe)
    zero = wait_then_let_next_start(EARLY)
    act += zero
    out += zero
    acc = tl.zeros([R, LANES], tl.float32)
    for j in tl.static_range(CHOICES):
        there = _pick(chosen, j, WIDTH) >= 0
        x = act + (token * CHOICES + j) * INTER
        dots = dot_stored_rows(loaded[j], table, x, there, INTER, FORMAT, LANES, EXACT, ASSEMBLY)
        acc += tl.where(there, dots * _pick(share, j, WIDTH), 0.0)
    total += tl.sum(acc, 1) * (UNIT / ACT_POWER)
    cell = token * HIDDEN + row
    if RANKS > 1:
        total = sum_over_ranks(total, cell, row < HIDDEN, places, BOX, zero, RANKS, CLOCK)
    tl.store(out + cell, before + total, mask=row < HIDDEN)


@dataclass(frozen=True)
class Routing:
    """The experts of each token: given, or computed by the kernels from the router's logits.

    given     weights [T, K] float32 and indices [T, K] int64; computed_from is 0
    computed  weights are the logits [T, E] float32, indices are the tokens' positions [T] int64; computed_from is E
    """

    weights: torch.Tensor
    indices: torch.Tensor
    choices: int
    computed_from: int = 0


def launch_few_pairs(
    arranged: Arranged,
    routing: Routing,
    experts: Experts,
    gate_up: GateUp,
    down: Down,
    arch: str,
    residual: torch.Tensor | None = None,
    ranks: Shared = ALONE,
) -> torch.Tensor:
    """[T, H] float32: the sum of the routed experts, over the ranks, plus `residual` [T, H] float32."""
    (tokens, hidden), inter, choices = arranged.x.shape, experts.inter, routing.choices
    exact = arranged.x.dtype == torch.float32
    bound = (experts.limit + 1) * experts.limit  # of SwiGLU
    shared = {
        "EXPERTS": routing.computed_from,
        "COUNT": triton.next_power_of_2(max(routing.computed_from, 1)),
        "CHOICES": choices,
        "WIDTH": triton.next_power_of_2(choices),
        "HIDDEN": hidden,
        "INTER": inter,
        "ACT_POWER": 1.0 if exact else 2.0 ** math.floor(math.log2(65504 / bound)),
        **experts.stored.constants,
        "EXACT": exact,
        "ASSEMBLY": has_inline_assembly(arch),
        "EARLY": has_dependent_launch(arch),
    }
    act = arranged.x.new_empty((tokens * choices, inter))
    wrap_triton(_gate_up_pdl)[(triton.cdiv(2 * inter, gate_up.rows * gate_up.tiles), tokens * choices)](
        arranged.x,
        arranged.undo,
        routing.weights,
        routing.indices,
        *experts.gate_up,
        act,
        ALPHA=experts.alpha,
        LIMIT=experts.limit,
        R=gate_up.rows,
        TILES=gate_up.tiles,
        LANES=lanes_for(experts.stored, gate_up.warps),
        num_warps=gate_up.warps,
        **shared,
    )
    out = arranged.undo.new_empty((tokens, hidden))
    wrap_triton(_down_pdl)[(triton.cdiv(hidden, down.rows), tokens)](
        act,
        routing.weights,
        routing.indices,
        *experts.down,
        out if residual is None else residual,
        out if ranks.places is None else ranks.places,
        out,
        UNIT=unit_of(experts.stored),
        R=down.rows,
        LANES=lanes_for(experts.stored, down.warps),
        RESIDUAL=residual is not None,
        num_warps=down.warps,
        **ranks.constants(arch),
        **shared,
    )
    return out
