"""Experts for few pairs (decode): matrix-vector kernels over the routed experts' weights.

A *pair* is one (token, choice): pair = token * K + choice. At 53 MB a layer two things bind: bytes in
flight, and the instructions that unpack 100 million weights. A program is one warp with a few whole rows,
all of whose loads are asked for before the first is used; a thread reads 16 bytes, a group of 32 weights,
so that the group's scale is applied once, to the sum of the group.

Unpacking handles two weights at a time: in a 32-bit word of 8 nibbles, nibbles j and j + 4 are moved to
where two float16 keep sign, low exponent bits and first mantissa bit,

    s e e m  ->  s 000ee m000000000   which is the weight * 2^-14, zero and the subnormal 0.5 included,

by two shifts and two logic operations. Word i therefore needs x[8 i + j] and x[8 i + j + 4] together, for
j = 0..3, and x is passed in that order, in one of two forms:

  float16  for bfloat16 weights on a GPU: pairs (x[8 i + j], x[8 i + j + 4]), [4, H / 8, 2], times a power
           of two that brings the largest element under 2^15. One instruction multiplies and adds two
           weights (fma.rn.f16x2); float16 sums run over the 16 products of half a group, then
           float32. Rounding x costs 2^-11 of it, where the bfloat16 of the contract costs 2^-9.
  float32  otherwise (`EXACT`): planes x[8 i + j], [8, H / 8], and float32 sums. It is what the float16 form
           is tested against, and it is plain Triton, so it runs in the interpreter.

SwiGLU is bounded by (limit + 1) * limit, so the power of two of `act` is known beforehand.

`_gate_up_pdl` starts to work when the routing is there. `_down_pdl` is allowed to read the routing before
it waits (`_gate_up_pdl` lets it start only after its own wait), and so has its weights in registers when
`act` comes. It sums over the choices and adds the residual.

Limits: H and I are multiples of 32, as MXFP4 has it; weights, scales and biases are contiguous.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from gptoss_export.kernels.kernel import Cut, shape_of

from .dependent_launch import early, wait_then_let_next_start
from .mxfp4 import scale_of, swiglu

FEW_PAIRS = 32  # 8 tokens of 4 choices: beyond, tokens share experts and tensor cores pay
LANES = tl.constexpr(32)  # groups of a row at a time, one a thread
UNIT = tl.constexpr(16384.0)  # 2^14, by which unpacked weights are too small


class GateUp(NamedTuple):
    """How the first product is cut."""

    rows: int  # R
    tiles: int
    warps: int


class Down(NamedTuple):
    """How the second is cut."""

    rows: int  # R
    warps: int


def cut_few(tokens: int, choices: int, experts: int, hidden: int, inter: int, dtype: torch.dtype) -> Cut:
    return Cut(
        name="experts_few",
        shape=shape_of(dtype, tokens=tokens, choices=choices, experts=experts, hidden=hidden, inter=inter),
        sizes=("tokens",),
        default={"gate_up": GateUp(rows=4, tiles=3, warps=1), "down": Down(rows=4, warps=2)},
        options={
            "gate_up": {"rows": (2, 4, 8), "tiles": (1, 2, 3, 4, 6), "warps": (1, 2, 4)},
            "down": {"rows": (1, 2, 4, 8), "warps": (1, 2, 4)},
        },
    )  # fmt: skip


def exact(dtype: torch.dtype) -> bool:
    """Whether x is passed in float32; see the top of the file."""
    return dtype != torch.bfloat16 or triton.knobs.runtime.interpret


@triton.jit
def _two_nibbles(words, J: tl.constexpr):
    """Nibbles J and J + 4 of 32-bit words as float32, times 2^-14."""
    magnitude = words >> 3 if J == 3 else words << (9 - 4 * J)
    signs = (words << (12 - 4 * J)) & -0x7FFF8000  # 0x80008000 as Triton wants an int32
    halves = signs | (magnitude & 0x0E000E00)
    low = halves.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    high = (halves >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _word_sum(words, x0, x1, x2, x3):
    """Words of 8 weights times 4 pairs of x: two float16 sums of four, in an int32."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 m, s, h;
        shl.b32 m, $1, 9;
        and.b32 m, m, 0x0E000E00;
        shl.b32 s, $1, 12;
        lop3.b32 h, s, 0x80008000, m, 0xEA;
        mul.rn.f16x2 $0, h, $2;
        shl.b32 m, $1, 5;
        and.b32 m, m, 0x0E000E00;
        shl.b32 s, $1, 8;
        lop3.b32 h, s, 0x80008000, m, 0xEA;
        fma.rn.f16x2 $0, h, $3, $0;
        shl.b32 m, $1, 1;
        and.b32 m, m, 0x0E000E00;
        shl.b32 s, $1, 4;
        lop3.b32 h, s, 0x80008000, m, 0xEA;
        fma.rn.f16x2 $0, h, $4, $0;
        shr.u32 m, $1, 3;
        and.b32 m, m, 0x0E000E00;
        lop3.b32 h, $1, 0x80008000, m, 0xEA;
        fma.rn.f16x2 $0, h, $5, $0;
        }
        """,
        "=&r,r,r,r,r,r", [words, x0, x1, x2, x3], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _add_pairs(a, b):
    return tl.inline_asm_elementwise(
        "add.rn.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _pair_sum(pairs):
    """Two float16 in an int32 to their float32 sum."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b16 l, h;
        .reg .f32 a, b;
        mov.b32 {l, h}, $1;
        cvt.f32.f16 a, l;
        cvt.f32.f16 b, h;
        add.f32 $0, a, b;
        }
        """,
        "=f,r", [pairs], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _load_groups(blocks, scales, line, wanted, LENGTH: tl.constexpr):
    """Rows `line` [R] int64 of all MXFP4 rows of LENGTH weights: pieces [R, LANES, 4] of words, [R, LANES] of
    scales. Nothing is read unless `wanted`."""
    words = blocks.to(tl.pointer_type(tl.int32), bitcast=True)
    packed = ()
    factors = ()
    for start in tl.static_range(0, LENGTH // 32, LANES):
        group = start + tl.arange(0, LANES)
        there = (group < LENGTH // 32) & wanted
        word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        cells = line[:, None, None] * (LENGTH // 8) + word[None, :, :]
        packed = packed + (tl.load(words + cells, mask=there[None, :, None], other=0, cache_modifier=".cg"),)
        cells = line[:, None] * (LENGTH // 32) + group[None, :]
        factors = factors + (tl.load(scales + cells, mask=there[None, :], other=0),)
    return packed, factors


@triton.jit
def _dot_groups(packed, factors, x, wanted, LENGTH: tl.constexpr, EXACT: tl.constexpr):
    """[R, LANES] float32 shares of the rows times the vector x, times 2^-14 and whatever x is scaled by.

    x is loaded here, every time: kept in registers over several tiles of rows it costs more occupancy than
    the loads cost (72 us a layer in place of 52)."""
    acc = tl.zeros(factors[0].shape, tl.float32)
    for i in tl.static_range(len(packed)):
        group = i * LANES + tl.arange(0, LANES)
        there = ((group < LENGTH // 32) & wanted)[:, None]
        word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        if EXACT:
            sums = tl.zeros(packed[i].shape, tl.float32)
            for j in tl.static_range(4):
                low, high = _two_nibbles(packed[i], j)
                x_low = tl.load(x + j * (LENGTH // 8) + word, mask=there, other=0.0)
                x_high = tl.load(x + (j + 4) * (LENGTH // 8) + word, mask=there, other=0.0)
                sums += low * x_low[None, :, :]
                sums += high * x_high[None, :, :]
            acc += tl.sum(sums, 2) * scale_of(factors[i])
        else:
            pairs = x.to(tl.pointer_type(tl.int32), bitcast=True) + word
            x0 = tl.load(pairs, mask=there, other=0)
            x1 = tl.load(pairs + LENGTH // 8, mask=there, other=0)
            x2 = tl.load(pairs + 2 * (LENGTH // 8), mask=there, other=0)
            x3 = tl.load(pairs + 3 * (LENGTH // 8), mask=there, other=0)
            sums = _word_sum(packed[i], x0[None], x1[None], x2[None], x3[None])
            acc += _pair_sum(tl.reduce(sums, 2, _add_pairs)) * scale_of(factors[i])
    return acc


@triton.jit
def place_of(i, LENGTH: tl.constexpr, EXACT: tl.constexpr):
    """Where element i of x lies in the order of the kernels."""
    if EXACT:
        place = i % 8 * (LENGTH // 8) + i // 8
    else:
        place = i % 4 * (LENGTH // 4) + i // 8 * 2 + i % 8 // 4
    return place


@triton.jit
def power_for(peak, EXACT: tl.constexpr):
    """The power of two that x is multiplied by in its float16 form, for its largest magnitude."""
    if EXACT:
        power = peak * 0 + 1.0
    else:
        exponent = tl.minimum(tl.maximum(peak.to(tl.int32, bitcast=True) >> 23, 24), 250)
        power = ((127 + 14 + 127 - exponent) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def _arrange(x, arranged, undo, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """x [T, H] of one token in the order and form of the kernels, and what a product has to be multiplied by."""
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + token * HIDDEN + i, mask=i < HIDDEN, other=0.0).to(tl.float32)
    power = power_for(tl.max(tl.abs(value), 0), EXACT)
    cells = token * HIDDEN + place_of(i, HIDDEN, EXACT)
    tl.store(arranged + cells, (value * power).to(arranged.dtype.element_ty), mask=i < HIDDEN)
    tl.store(undo + token, 1.0 / power * UNIT)


@triton.jit
def _routing(
    weights, indices, token, EXPERTS: tl.constexpr, CHOICES: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr
):
    """Experts and weights of a token's choices, [SLOTS] each; -1 where there is none.

    With EXPERTS 0 they are given. Otherwise `weights` are the router's logits [T, EXPERTS] and `indices` are
    the tokens' positions [T]: every program chooses for itself, which takes it less time than it would take
    to wait for one that does. COUNT and SLOTS are EXPERTS and CHOICES rounded up to powers of two."""
    slot = tl.arange(0, SLOTS)
    if EXPERTS == 0:
        there = slot < CHOICES
        chosen = tl.load(indices + token * CHOICES + slot, mask=there, other=-1).to(tl.int32)
        share = tl.load(weights + token * CHOICES + slot, mask=there, other=0.0)
    else:
        expert = tl.arange(0, COUNT)
        left = tl.load(weights + token * EXPERTS + expert, mask=expert < EXPERTS, other=float("-inf"))
        position = tl.load(indices + token)
        chosen = tl.zeros([SLOTS], tl.int32)
        share = tl.zeros([SLOTS], tl.float32)
        largest = tl.max(left, 0)
        for choice in tl.static_range(CHOICES):
            best, at = tl.max(left, 0, return_indices=True)  # of equal ones the first
            at = tl.minimum(at, EXPERTS - 1)  # of NaN it may be anything
            chosen = tl.where(slot == choice, at, chosen)
            share = tl.where(slot == choice, tl.exp(best - largest), share)
            left = tl.where(expert == at, float("-inf"), left)
        chosen = tl.where(position >= 0, chosen, -1)
        share = share / tl.sum(share, 0)
    return chosen, share


@triton.jit
def _pick(values, choice, SLOTS: tl.constexpr):
    """One of [SLOTS] values as a scalar."""
    return tl.sum(tl.where(tl.arange(0, SLOTS) == choice, values, 0), 0)


@triton.jit
def _gate_up_pdl(
    arranged, undo, routing_weights, expert_indices, blocks, scales, bias, act,
    EXPERTS: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr,
    CHOICES: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr,
    ALPHA: tl.constexpr, LIMIT: tl.constexpr, ACT_POWER: tl.constexpr,
    R: tl.constexpr, TILES: tl.constexpr, EXACT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """act of one pair, times ACT_POWER, in the order of the kernels: TILES times R of its 2 I rows."""
    zero = wait_then_let_next_start(EARLY)
    routing_weights += zero
    expert_indices += zero
    arranged += zero
    undo += zero
    act += zero
    pair = tl.program_id(1)
    token = pair // CHOICES
    chosen, _ = _routing(routing_weights, expert_indices, token, EXPERTS, CHOICES, COUNT, SLOTS)
    expert = _pick(chosen, pair % CHOICES, SLOTS).to(tl.int64)
    if expert < 0:
        return
    factor = tl.load(undo + token)
    for tile in range(TILES):
        at = tl.program_id(0) * TILES + tile
        line = expert * (2 * INTER) + tl.minimum(at * R + tl.arange(0, R), 2 * INTER - 1)
        packed, factors = _load_groups(blocks, scales, line, True, HIDDEN)
        added = tl.load(bias + line).to(tl.float32)
        tl.debug_barrier()  # or the assembler may put off loads until their values are used, and few bytes are in flight
        dots = _dot_groups(packed, factors, arranged + token * HIDDEN, True, HIDDEN, EXACT)
        hidden = tl.sum(dots, 1) * factor + added
        result = swiglu(hidden.reshape(R // 2, 2), ALPHA, LIMIT) * ACT_POWER
        i = at * (R // 2) + tl.arange(0, R // 2)
        cells = pair * INTER + place_of(i, INTER, EXACT)
        tl.store(act + cells, result.to(act.dtype.element_ty), mask=i < INTER)


@triton.jit
def _down_pdl(
    act, routing_weights, expert_indices, blocks, scales, bias, residual, out,
    EXPERTS: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr,
    CHOICES: tl.constexpr, HIDDEN: tl.constexpr, INTER: tl.constexpr, ACT_POWER: tl.constexpr,
    R: tl.constexpr, EXACT: tl.constexpr, RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """R of the H results of one token: the sum over its choices, and the residual."""
    token = tl.program_id(1)
    row = tl.program_id(0) * R + tl.arange(0, R)
    safe = tl.minimum(row, HIDDEN - 1)
    packed = ()
    factors = ()
    total = tl.zeros([R], tl.float32)
    chosen, share = _routing(routing_weights, expert_indices, token, EXPERTS, CHOICES, COUNT, SLOTS)
    for j in tl.static_range(CHOICES):
        expert = _pick(chosen, j, SLOTS).to(tl.int64)
        line = tl.maximum(expert, 0) * HIDDEN + safe
        words, bytes_ = _load_groups(blocks, scales, line, expert >= 0, INTER)
        packed = packed + (words,)
        factors = factors + (bytes_,)
        added = tl.load(bias + line).to(tl.float32)
        total += tl.where(expert >= 0, _pick(share, j, SLOTS) * added, 0.0)
    if RESIDUAL:
        total += tl.load(residual + token * HIDDEN + safe)
    zero = wait_then_let_next_start(EARLY)
    act += zero
    out += zero
    acc = tl.zeros([R, LANES], tl.float32)
    for j in tl.static_range(CHOICES):
        there = _pick(chosen, j, SLOTS) >= 0
        dots = _dot_groups(packed[j], factors[j], act + (token * CHOICES + j) * INTER, there, INTER, EXACT)
        acc += tl.where(there, dots * _pick(share, j, SLOTS), 0.0)
    total += tl.sum(acc, 1) * (UNIT / ACT_POWER)
    tl.store(out + token * HIDDEN + row, total, mask=row < HIDDEN)


def arrange(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, H] in the order and form of the kernels, and [T] float32 what a product has to be multiplied by."""
    tokens, hidden = x.shape
    arranged, undo = empty_arranged(x, x.dtype)
    wrap_triton(_arrange)[(tokens,)](
        x.contiguous(), arranged, undo,
        HIDDEN=hidden, BLOCK=triton.next_power_of_2(hidden), EXACT=exact(x.dtype), num_warps=4,
    )  # fmt: skip
    return arranged, undo


def empty_arranged(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for what `arrange` returns, for weights of `dtype`."""
    form = torch.float32 if exact(dtype) else torch.float16
    return x.new_empty(x.shape, dtype=form), x.new_empty(x.size(0), dtype=torch.float32)


def few(
    arranged, undo, routing_weights, expert_indices, gate_up_blocks, gate_up_scales, gate_up_bias,
    down_blocks, down_scales, down_bias, residual, choices, alpha, limit, first, second, arch, experts=0,
) -> torch.Tensor:  # fmt: skip
    """[T, H] float32: the routed experts' sum, on top of `residual` [T, H] float32 or None.

    The routing is given as weights and indices [T, K]; or, with the number of `experts`, as the router's
    logits [T, E] float32 and the tokens' positions [T]. first and second: how the two products are cut."""
    tokens, hidden = arranged.shape
    inter = down_blocks.size(2) * 32
    form = {
        "EXPERTS": experts, "COUNT": triton.next_power_of_2(max(experts, 1)),
        "CHOICES": choices, "SLOTS": triton.next_power_of_2(choices),
        "EXACT": arranged.dtype == torch.float32, "EARLY": early(arch),
    }  # fmt: skip
    power = 1.0 if form["EXACT"] else 2.0 ** math.floor(math.log2(65504 / ((limit + 1) * limit)))
    act = arranged.new_empty((tokens * choices, inter))
    wrap_triton(_gate_up_pdl)[(triton.cdiv(2 * inter, first.rows * first.tiles), tokens * choices)](
        arranged, undo, routing_weights, expert_indices, gate_up_blocks, gate_up_scales, gate_up_bias, act,
        HIDDEN=hidden, INTER=inter, ALPHA=alpha, LIMIT=limit, ACT_POWER=power,
        R=first.rows, TILES=first.tiles, num_warps=first.warps, **form,
    )  # fmt: skip
    out = undo.new_empty((tokens, hidden))
    wrap_triton(_down_pdl)[(triton.cdiv(hidden, second.rows), tokens)](
        act, routing_weights, expert_indices, down_blocks, down_scales, down_bias,
        out if residual is None else residual, out,
        HIDDEN=hidden, INTER=inter, ACT_POWER=power,
        R=second.rows, RESIDUAL=residual is not None, num_warps=second.warps, **form,
    )  # fmt: skip
    return out
