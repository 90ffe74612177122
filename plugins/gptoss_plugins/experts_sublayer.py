"""gptoss_triton::experts_sublayer: `gptoss::experts_sublayer` for NVIDIA GPUs.

The contract is in gptoss_export/model/ops/experts_sublayer.py. By the number of tokens the op is

    up to FEW_PAIRS pairs (token, choice): `_router_pdl`, and the kernels of experts_few.py
    up to MOST_TOKENS tokens: `_router_pdl`, `_group_pdl` (router_groups.py), which chooses the experts and groups the
        pairs, and the kernels of experts_many.py
    more (a chunk): `_route_chunk_pdl` (router_chunk.py), the grouping of grouping.py, and the kernels of
        experts_many.py

The last kernel sums over the ranks that share the model, and adds the residual. Of a chunk with more than CELLS numbers
gptoss::sum_ranks does both.

While the router runs, the memory is idle, so the time until the logits are ready counts in full. The logits are
therefore spread over programs of a few experts each, which have their rows in registers when x is ready. One more
program for each token brings x into the order of the experts' kernels. Top-k is left to the kernels that follow. They
start only after the router's wait: they have nothing to do before the routing is known, and if started earlier they
would fill the SMs unevenly.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, unflatten
from gptoss_export.model.ops import Arguments
from gptoss_export.model.ops.sum_ranks import reference as sum_of_chunk
from gptoss_export.model.places import CELLS, Box

from .arch import has_dependent_launch
from .arranged import Arranged, empty_arranged, is_exact, place_of, power_for, unit_of
from .dense_tiles import MOST_TOKENS
from .dependent_launch import wait_then_let_next_start
from .experts_few import FEW_PAIRS, Down, GateUp, Routing, few_pairs_space, launch_few_pairs
from .experts_many import Block, Tile, launch_many_pairs, many_pairs_space
from .grouping import Grouped, group_pairs
from .mxfp4_words import padded, word_place
from .rank_cells import ALONE, Shared
from .router_chunk import MOST_EXPERTS, route_chunk
from .router_groups import group_by_logits
from .rows import ROW_OPTIONS, Rows, dot_rows_of_norm, load_rows
from .stored import Experts, stored_as
from .stored_product import order_for

ROUTER = Rows(rows=4, length=1024, warps=4)


@triton.jit
def _router_pdl(
    x,
    norm_weight,
    weight,
    bias,
    logits,
    arranged,
    undo,
    HIDDEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    EPS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    EXACT: tl.constexpr,
    UNIT: tl.constexpr,
    STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """R logits of one token; the last program of a token brings x into the order of the experts' kernels.

    That is the order of experts_few.py where WORDS is 0, and that of the words (mxfp4_words.py) otherwise. WIDTH is
    STRIDE, the elements of a token of `arranged`, rounded up to a power of two.
    """
    token = tl.program_id(1)
    x += token * HIDDEN
    if tl.program_id(0) < tl.num_programs(0) - 1:
        row = tl.program_id(0) * R + tl.arange(0, R)
        safe = tl.minimum(row, EXPERTS - 1)
        pieces = load_rows(weight, safe, HIDDEN, BLOCK)
        added = tl.load(bias + safe).to(tl.float32)
        x += wait_then_let_next_start(EARLY)
        y = dot_rows_of_norm(pieces, x, norm_weight, HIDDEN, BLOCK, EPS) + added
        tl.store(logits + token * EXPERTS + row, y, mask=row < EXPERTS)
    else:
        i = tl.arange(0, WIDTH)
        factor = tl.load(norm_weight + i, mask=i < HIDDEN, other=0.0).to(tl.float32)
        x += wait_then_let_next_start(EARLY)
        value = tl.load(x + i, mask=i < HIDDEN, other=0.0)
        root = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + EPS)
        value *= factor * root
        arranged += token * STRIDE
        if WORDS:
            tl.store(arranged + word_place(i, WORDS), value.to(arranged.dtype.element_ty), mask=i < STRIDE)
        else:
            power = power_for(tl.max(tl.abs(value), 0), EXACT)
            place = place_of(i, HIDDEN, FORMAT, EXACT)
            tl.store(arranged + place, (value * power).to(arranged.dtype.element_ty), mask=i < HIDDEN)
            tl.store(undo + token, 1.0 / power * UNIT)


@triton_op("gptoss_triton::experts_sublayer", mutates_args={})
def experts_sublayer(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    router_weight: torch.Tensor,
    router_bias: torch.Tensor,
    gate_up_weight: torch.Tensor,
    gate_up_scales: torch.Tensor | None,
    gate_up_table: torch.Tensor | None,
    gate_up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_scales: torch.Tensor | None,
    down_table: torch.Tensor | None,
    down_bias: torch.Tensor,
    positions: torch.Tensor,
    choices: int,
    alpha: float,
    limit: float,
    eps: float,
    places: torch.Tensor | None,
    ranks: int,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """`gptoss::experts_sublayer`: same result. `config` and `arch` as in gptoss_export/kernels/launch_config.py."""
    experts = Experts(
        gate_up_weight=gate_up_weight,
        gate_up_scales=gate_up_scales,
        gate_up_table=gate_up_table,
        gate_up_bias=gate_up_bias,
        down_weight=down_weight,
        down_scales=down_scales,
        down_table=down_table,
        down_bias=down_bias,
        alpha=alpha,
        limit=limit,
    )
    given = x.contiguous(), norm_weight, router_weight, router_bias, experts, positions.contiguous(), choices, eps
    if places is None or x.numel() <= CELLS:
        return _experts_half(*given, x.contiguous(), Shared(places, ranks, Box.EXPERTS), config, arch)
    part = _experts_half(*given, None, ALONE, config, arch)
    # In the dtype of the weights: the time of so large a sum is that of its bytes.
    return sum_of_chunk(part.to(norm_weight.dtype), x, places, ranks, Box.EXPERTS)


def _experts_half(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    router_weight: torch.Tensor,
    router_bias: torch.Tensor,
    experts: Experts,
    positions: torch.Tensor,
    choices: int,
    eps: float,
    residual: torch.Tensor | None,
    shared: Shared,
    config: list[int],
    arch: str,
) -> torch.Tensor:
    """What the experts make of x, summed over the ranks of `shared`, plus the residual."""
    (tokens, hidden), count, stored = x.shape, router_weight.size(0), experts.stored
    if tokens > MOST_TOKENS:
        block, gate_up, down = unflatten(config, Block, Tile, Tile)
        words = order_for(stored, gate_up.words)
        arranged_words, chosen, shares = route_chunk(
            x, norm_weight, router_weight, router_bias, positions, choices, eps, words, arch
        )
        grouped = Grouped(chosen, shares, *group_pairs(chosen.flatten(), count, block.pairs))
        return launch_many_pairs(arranged_words, grouped, experts, block, gate_up, down, arch, residual, shared)
    many = tokens * choices > FEW_PAIRS
    if many:
        router, block, gate_up, down = unflatten(config, Rows, Block, Tile, Tile)
        exact, words = True, order_for(stored, gate_up.words)
        stride = padded(hidden, words)
        arranged = Arranged(x.new_empty((tokens, stride), dtype=norm_weight.dtype), x)  # `undo` is not written
    else:
        router, gate_up, down = unflatten(config, Rows, GateUp, Down)
        exact, words, stride = is_exact(stored, norm_weight.dtype, arch), 0, hidden
        arranged = empty_arranged(x, exact)
    logits = x.new_empty((tokens, count))
    wrap_triton(_router_pdl)[(triton.cdiv(count, router.rows) + 1, tokens)](
        x,
        norm_weight,
        router_weight,
        router_bias,
        logits,
        *arranged,
        HIDDEN=hidden,
        EXPERTS=count,
        EPS=eps,
        R=router.rows,
        BLOCK=router.length,
        WIDTH=triton.next_power_of_2(stride),
        FORMAT=stored.form,
        EXACT=exact,
        UNIT=unit_of(stored),
        STRIDE=stride,
        WORDS=words,
        EARLY=has_dependent_launch(arch),
        num_warps=router.warps,
    )
    if many:
        grouped = group_by_logits(logits, positions, choices, block.pairs, arch)
        return launch_many_pairs(arranged.x, grouped, experts, block, gate_up, down, arch, residual, shared)
    routing = Routing(logits, positions, choices, computed_from=count)
    return launch_few_pairs(arranged, routing, experts, gate_up, down, arch, residual, shared)


def covers(arguments: Arguments) -> bool:
    """Whether there are few enough tokens or experts. For more, the reference calls the smaller ops."""
    return arguments["x"].size(0) <= MOST_TOKENS or arguments["router_weight"].size(0) <= MOST_EXPERTS


def config_space(arguments: Arguments, arch: str) -> ConfigSpace:
    """The launch configs of a call: those of the experts, and rows and warps of the router of a batch."""
    (tokens, hidden), dtype, choices = arguments["x"].shape, arguments["norm_weight"].dtype, arguments["choices"]
    experts, inter = arguments["down_bias"].size(0), arguments["gate_up_bias"].size(1) // 2
    stored = stored_as(arguments["down_scales"], inter)
    sizes = stored, tokens, choices, experts, hidden, inter, dtype
    many = tokens * choices > FEW_PAIRS
    inner = (many_pairs_space if many else few_pairs_space)(*sizes)
    if tokens > MOST_TOKENS:
        return replace(inner, name=stored.space_name("experts_chunk"))
    return replace(
        inner,
        name=stored.space_name("experts_many_step" if many else "experts_step"),
        default={"router": ROUTER.for_rows_of(hidden), **inner.default},
        options={"router": ROW_OPTIONS, **inner.options},
    )


KERNEL = Kernel(experts_sublayer, config_space, covers, interleaved=("gate_up", "down"))
