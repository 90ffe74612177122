"""The Triton kernels against the references of their ops.

On any machine in Triton's interpreter, float32 and float16 (its tl.dot on bfloat16 is garbage); on a GPU
as they are, float32 and bfloat16, and at the sizes of gpt-oss-20b. The interpreter has to be switched on
before Triton is first imported, and another test of this process may have imported it: so the cases run
in subprocesses, which are this file run as a script, and every test reads its own line of the result.

A kernel is held against its op's reference; the grouping of pairs by expert, which is a part of one,
against the same in plain Python.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_export.verify.metric import TOLERANCES, Error, error
from gptoss_export.compiler.lower import kernels, shipped_tables
from gptoss_export.targets.target import gpu_arch
from gptoss_export.model.ops import OPS, Op
from gptoss_export.kernels.tuned_configs import CutTable

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INTERPRETED = "float32", "float16"
Case = tuple[str, tuple[Any, ...]]


# ---- cases ----------------------------------------------------------------------------------------------


def attention_args(
    device, dtype, slots, kv_heads, group, dim, rows, window, starts, length, *, valid=None, sinks=None
) -> tuple[Any, ...]:
    """Sequences of `length` queries from each of `starts` on; only the first `valid` are not padding."""
    random = torch.Generator(device).manual_seed(rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    step = torch.arange(length, device=device)
    positions = torch.tensor(starts, device=device)[:, None] + step
    positions[:, step >= (length if valid is None else valid)] = -1
    cache = [draw(slots, kv_heads, rows + 1, dim) for _ in "kv"]
    for tensor in cache:
        tensor[:, :, rows] = float("nan")  # the scratch row: nobody may read it
    return (
        draw(len(starts), length, kv_heads * group, dim),
        *cache,
        2 * draw(kv_heads * group).to(sinks or dtype),
        torch.arange(slots, device=device).flip(0)[: len(starts)].contiguous(),
        positions,
        window,
        dim**-0.5,
    )


def expert_args(
    device, dtype, tokens, hidden, inter, experts, choices, *, scales=(118, 123)
) -> tuple[Any, ...]:
    """Random bytes as weights: every code, scales of a range."""
    random = torch.Generator(device).manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    def packed(rows: int, columns: int) -> list[torch.Tensor]:
        shape = experts, rows, columns // 32
        return [
            torch.randint(low, high, size, dtype=torch.uint8, generator=random, device=device)
            for low, high, size in ((0, 256, (*shape, 16)), (*scales, shape))
        ]

    routing = torch.rand(tokens, experts, generator=random, device=device).topk(choices, dim=1)
    return (
        draw(tokens, hidden), routing.values.softmax(dim=1), routing.indices,
        *packed(2 * inter, hidden), draw(experts, 2 * inter),
        *packed(hidden, inter), draw(experts, hidden), 1.702, 7.0,
    )  # fmt: skip


def attention_cases(device, dtype) -> Iterator[Case]:
    """What the op's own cases leave out: many shares, odd sizes, garbage in the scratch row."""
    shapes = {
        "decode, window over shares, wrapped": (3, 2, 4, 32, 640, 600, [1500, 700, -1], 1),
        "decode, fewer keys than shares": (2, 1, 8, 64, 2000, 0, [1999, 40], 1),
        "decode, head_dim 80, group 3": (2, 2, 3, 80, 200, 0, [199, 63], 1),
        "decode, group 20": (1, 1, 20, 16, 200, 0, [150], 1),
        "prefill, two sequences": (3, 2, 2, 48, 160, 0, [64, 0], 33),
        "prefill, window not of tiles": (1, 1, 3, 32, 120, 37, [119], 80),
    }
    for label, shape in shapes.items():
        yield label, attention_args(device, dtype, *shape)
    yield (
        "prefill, tiles of padding",
        attention_args(device, dtype, 1, 1, 8, 32, 300, 0, [50], 100, valid=3, sinks=torch.float32),
    )


def expert_cases(device, dtype) -> Iterator[Case]:
    """Both sides of the boundary between the regimes, and scales at the ends of E8M0."""
    yield "most tokens of the first regime", expert_args(device, dtype, 8, 32, 32, 8, 4)
    yield "fewest tokens of the second", expert_args(device, dtype, 9, 96, 64, 8, 4)
    yield "experts in several blocks", expert_args(device, dtype, 150, 64, 96, 3, 2)
    yield "chunk of one choice, 160 wide", expert_args(device, dtype, 40, 160, 160, 4, 1)
    yield "results in two parts", expert_args(device, dtype, 17, 1568, 32, 2, 2)
    if dtype != torch.float16:  # which would not hold these weights
        for regime, tokens in ("few", 1), ("many", 40):
            args = list(expert_args(device, dtype, tokens, 64, 64, 8, 2))
            args[4][..., 0] = 0  # 2^-127
            args[4][..., 1] = 200  # 2^73: every gate and up is clamped
            yield f"smallest and large scales, {regime}", tuple(args)
    args = list(expert_args(device, dtype, 1, 64, 64, 8, 2))
    args[7][:, 5, 1] = 255
    yield "a scale that is NaN", tuple(args)


def router_cases(device, dtype) -> Iterator[Case]:
    """More experts than the router takes at a time, and a number of choices that is no power of two."""
    for label, tokens, experts, choices in (("40 experts", 1, 40, 4), ("130 experts, 3 choices", 2, 130, 3)):
        x, _, _, *weights, alpha, limit = expert_args(device, dtype, tokens, 64, 32, experts, choices)
        random = torch.Generator(device).manual_seed(experts)
        router = torch.randn(experts, 64, generator=random, device=device).to(dtype)
        positions = torch.arange(tokens, device=device)
        yield label, (
            x.float(), torch.ones_like(x[0]), router, router[:, 0].contiguous(), *weights,
            positions, choices, alpha, limit, 1e-5,
        )  # fmt: skip


MORE_CASES = {
    "sink_attention": attention_cases, "mxfp4_experts": expert_cases, "experts_sublayer": router_cases,
}  # fmt: skip


def cases(name: str, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    yield from OPS[name].cases(device, dtype)
    if name in MORE_CASES:
        yield from MORE_CASES[name](device, dtype)


def kernel(name: str, tables: tuple[CutTable, ...] = ()) -> Callable[..., Any]:
    return kernels()[name].bind(gpu_arch() or "sm_90", tables)


def distance(name: str, args: tuple[Any, ...], tables: tuple[CutTable, ...] = ()) -> Error:
    """Kernel against the reference computed in float32 of the same inputs: the worst of all results, and of
    the arguments that are written in place."""
    op = OPS[name]
    names = [argument.name for argument in op.overload._schema.arguments]
    expected = results(op, names, op.reference, [_exact(name, a) for name, a in zip(names, args, strict=True)])
    actual = results(op, names, kernel(name, tables), [a.clone() if isinstance(a, torch.Tensor) else a for a in args])
    found = [_distance(got, want) for got, want in zip(actual, expected, strict=True)]
    return Error(*(max(pair, key=lambda e: (e != e, e)) for pair in zip(*map(dataclasses.astuple, found), strict=True)))


def results(op: Op, names: list[str], function: Callable[..., Any], args: list[Any]) -> list[torch.Tensor]:
    returned = function(*args)
    written = [a[:, :, :-1] for name, a in zip(names, args, strict=True) if name in op.mutates]  # not the scratch row
    if returned is None:  # an op that only writes
        return written
    return [*(returned if isinstance(returned, tuple) else (returned,)), *written]


def _exact(name: str, argument: Any) -> Any:
    """In float32. The reference multiplies what nobody may read by zero; it must not be NaN there."""
    if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
        return argument.clone() if isinstance(argument, torch.Tensor) else argument
    return argument.float().nan_to_num() if name.endswith("_cache") else argument.float().clone()


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> Error:
    """Of one result; NaN and zero rows must be in the same places, and indices the same.

    Padding, whose results are zero, must not lower the root mean square that errors are measured by.
    """
    wrong = Error(float("nan"), float("nan"))
    if not expected.is_floating_point():
        return Error(0.0, 0.0) if torch.equal(actual, expected) else wrong
    if not torch.equal(actual.isnan(), expected.isnan()):
        return wrong
    active = (expected != 0).any(dim=-1) if expected.dim() > 1 else torch.ones_like(expected, dtype=torch.bool)
    if bool(actual[~active].any()):
        return wrong
    if not bool(active.any()):
        return Error(0.0, 0.0)
    return error(actual[active].nan_to_num(), expected[active].nan_to_num())


# ---- pairs grouped by expert ----------------------------------------------------------------------------

# label: (the expert of each pair, experts, slots of a block)
GROUPINGS: dict[str, tuple[list[int], int, int]] = {
    "one pair": ([2], 4, 16),
    "no pairs": ([], 3, 16),
    "all pairs padding": ([-1] * 40, 5, 16),
    "one expert has all pairs, in several tiles": ([6] * 2500, 7, 128),
    "the last expert has all pairs, whole blocks": ([3] * 64, 4, 32),
    "40 experts, some without pairs, some padding": ([i * i % 41 - 1 for i in range(1035)], 40, 32),
    "a chunk of the 20b": ([i * i // 7 % 32 for i in range(4 * 512)], 32, 64),
}


def check_grouping(device: torch.device, chosen: list[int], experts: int, slots: int) -> None:
    """Blocks of expert after expert, pairs ascending in them, -1 behind them and for blocks not needed."""
    from gptoss_plugins.experts_many import group_pairs

    indices = torch.tensor(chosen, dtype=torch.int64, device=device)
    expert_of_block, pair_of_slot = group_pairs(indices, experts, slots)
    assert expert_of_block.dtype == pair_of_slot.dtype == torch.int32
    assert pair_of_slot.numel() == expert_of_block.numel() * slots
    owners, pairs = [], []
    for expert in range(experts):
        mine = [pair for pair, owner in enumerate(chosen) if owner == expert]
        blocks = -(-len(mine) // slots)
        owners += [expert] * blocks
        pairs += mine + [-1] * (blocks * slots - len(mine))
    unused = expert_of_block.numel() - len(owners)
    assert expert_of_block.tolist() == owners + [-1] * unused
    assert pair_of_slot.tolist()[: len(pairs)] == pairs  # what the other slots hold is nobody's concern


@st.composite
def groupings(draw: st.DrawFn) -> tuple[list[int], int, int]:
    experts = draw(st.integers(1, 40))
    chosen = draw(st.lists(st.integers(-1, experts - 1), max_size=200))
    return chosen * draw(st.sampled_from((1, 1, 13))), experts, draw(st.sampled_from((16, 32, 128)))


@pytest.mark.parametrize("label", [*GROUPINGS, "drawn by hypothesis"])
def test_interpreted_pairs_are_grouped(interpreted, label):
    assert interpreted[f"group_pairs/{label}"] == "grouped"


def _interpret_groupings() -> dict[str, str]:
    """What went wrong with each, by 'group_pairs/label'."""

    @given(groupings())
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    def drawn(grouping) -> None:
        check_grouping(CPU, *grouping)

    checks = {label: partial(check_grouping, CPU, *grouping) for label, grouping in GROUPINGS.items()}
    found = {}
    for label, check in {**checks, "drawn by hypothesis": drawn}.items():
        try:
            check()
            found[f"group_pairs/{label}"] = "grouped"
        except AssertionError:
            found[f"group_pairs/{label}"] = traceback.format_exc()
    return found


# ---- in the interpreter ---------------------------------------------------------------------------------


def _keys(dtypes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return [
        (name, dtype, label)
        for name in OPS
        for dtype in dtypes
        for label, _ in cases(name, CPU, DTYPES[dtype])
    ]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """Errors of all cases, by 'op/dtype/label', and groupings. One process a dtype: the interpreter is slow."""
    runs = [
        subprocess.Popen(
            [sys.executable, __file__, dtype],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for dtype in INTERPRETED
    ]
    found: dict[str, Any] = {}
    for run in runs:
        output, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors
        found |= json.loads(output)
    return found


@pytest.mark.parametrize(("name", "dtype", "label"), _keys(INTERPRETED))
def test_interpreted_kernel_agrees(interpreted, name, dtype, label):
    found = Error(**interpreted[f"{name}/{dtype}/{label}"])
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


def _interpret(dtype: str) -> None:
    torch.set_num_threads(1)  # two of these run at once
    found = _interpret_groupings() if dtype == INTERPRETED[0] else {}
    for name in OPS:
        for label, args in cases(name, CPU, DTYPES[dtype]):
            found[f"{name}/{dtype}/{label}"] = dataclasses.asdict(distance(name, args))
    print(json.dumps(found, indent=1))


# ---- on a GPU -------------------------------------------------------------------------------------------

# At 20b sizes: by the kernels' own guess, and as each shipped table says, whatever Triton it was measured with.
CUT_BY = pytest.mark.parametrize(
    "tables", [tuple, shipped_tables, lambda: shipped_tables()[::-1]], ids=["guess", "measured", "measured otherwise"]
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("name", "dtype", "label"), _keys(("float32", "bfloat16")))
def test_kernel_agrees(name, dtype, label):
    args = dict(cases(name, torch.device("cuda"), DTYPES[dtype]))[label]
    found = distance(name, args)
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("label", GROUPINGS)
def test_pairs_are_grouped(label):
    check_grouping(torch.device("cuda"), *GROUPINGS[label])


@pytest.mark.gpu
@needs_gpu
@CUT_BY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 8, 512, 2048])
def test_experts_agree_at_20b_sizes(tokens, dtype, tables):
    args = expert_args(torch.device("cuda"), DTYPES[dtype], tokens, 2880, 2880, 32, 4)
    found = distance("mxfp4_experts", args, tables())
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


@pytest.mark.gpu
@needs_gpu
@CUT_BY
def test_experts_give_the_same_bits_each_time(tables):
    """A product that reads weights which are overwritten gives others in nearly every run."""
    args = expert_args(torch.device("cuda"), torch.bfloat16, 2048, 2880, 2880, 32, 4)
    experts = kernel("mxfp4_experts", tables())
    first = experts(*args)
    assert all(torch.equal(experts(*args), first) for _ in range(30))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [0, 128])
@pytest.mark.parametrize("length", [1, 512])
@pytest.mark.parametrize("context", [1, 4097, 8191])
@CUT_BY
def test_attention_agrees_at_20b_sizes(context, length, window, dtype, tables):
    """The last query stands at context - 1; a chunk longer than its context is padded."""
    rows = window + 512 if window else 8192
    start, valid = max(0, context - length), min(length, context)
    args = attention_args(
        torch.device("cuda"), DTYPES[dtype], 2, 8, 8, 64, rows, window, [start], length, valid=valid
    )
    found = distance("sink_attention", args, tables())
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


if __name__ == "__main__":
    _interpret(sys.argv[1])
