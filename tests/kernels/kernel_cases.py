"""Cases of the kernel tests, and how a kernel is compared with the reference of its op.

The cases are those of the ops and some more, which cover what the Triton kernels in particular could get wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.kernels.tuned_configs import TunedConfigs
from gptoss_export.model.expert_formats import BF16, MXFP4, NF4, NF4_OF_32, ExpertFormat
from gptoss_export.model.ops import OPS, Case
from gptoss_export.verification.metric import Deviation, deviation

CPU = torch.device("cpu")
GUARD = 4096  # elements on each side of a cache that a kernel must not touch
WRONG = Deviation(float("nan"), float("nan"))  # within no bound
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def attention_arguments(
    device: torch.device,
    dtype: torch.dtype,
    *,
    slots: int,
    kv_heads: int,
    group: int,
    dim: int,
    page: int,
    count: int,
    window: int,
    starts: Sequence[int],
    length: int,
    valid: int | None = None,
    sinks: torch.dtype | None = None,
) -> dict[str, Any]:
    """Sequences of `length` queries from each of `starts` on, in `count` pages a slot. Only the first `valid` queries
    are not padding."""
    random = torch.Generator(device).manual_seed(page * count)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    step = torch.arange(length, device=device)
    positions = torch.tensor(starts, device=device)[:, None] + step
    positions[:, step >= (length if valid is None else valid)] = -1
    caches = [draw(slots * count + 1, kv_heads, page, dim) for _ in range(2)]
    for cache in caches:
        cache[0] = float("nan")  # the scratch page: no kernel may read it
    pages = torch.randperm(slots * count, generator=random, device=device).view(slots, count).int() + 1
    return {
        "query": draw(len(starts), length, kv_heads * group, dim),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "pages": pages,
        "sinks": 2 * draw(kv_heads * group).to(sinks or dtype),
        "slots": torch.arange(slots, device=device).flip(0)[: len(starts)].contiguous(),
        "positions": positions,
        "window": window,
        "scale": dim**-0.5,
    }


def expert_arguments(
    device: torch.device,
    dtype: torch.dtype,
    *,
    tokens: int,
    hidden: int,
    inter: int,
    experts: int,
    choices: int,
    scales: tuple[int, int] = (118, 123),
    form: ExpertFormat = MXFP4,
) -> dict[str, Any]:
    """Random bytes as codes, so that every code occurs; scales of MXFP4 from a range."""
    random = torch.Generator(device).manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    def uniform(low: float, high: float, shape: tuple[int, ...]) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, device=device)

    def stored(rows: int, columns: int) -> list[torch.Tensor | None]:
        """Weight, scales and table of all experts' matrices."""
        shapes = [tensor.shape(experts, rows, columns) for tensor in form.tensors]
        if form == BF16:
            return [draw(*shapes[0]) * columns**-0.5, None, None]
        if form == MXFP4:
            return [
                torch.randint(low, high, size, dtype=torch.uint8, generator=random, device=device)
                for (low, high), size in zip(((0, 256), scales), shapes, strict=True)
            ] + [None]
        codes = torch.randint(0, 256, shapes[0], dtype=torch.uint8, generator=random, device=device)
        return [codes, uniform(0, 3 * columns**-0.5, shapes[1]), uniform(-1, 1, shapes[2])]

    routing = torch.rand(tokens, experts, generator=random, device=device).topk(choices, dim=1)
    x = draw(tokens, hidden)
    gate_up, gate_up_bias = stored(2 * inter, hidden), draw(experts, 2 * inter)
    down, down_bias = stored(hidden, inter), draw(experts, hidden)
    return {
        "x": x,
        "routing_weights": routing.values.softmax(dim=1),
        "expert_indices": routing.indices,
        "gate_up_weight": gate_up[0],
        "gate_up_scales": gate_up[1],
        "gate_up_table": gate_up[2],
        "gate_up_bias": gate_up_bias,
        "down_weight": down[0],
        "down_scales": down[1],
        "down_table": down[2],
        "down_bias": down_bias,
        "alpha": 1.702,
        "limit": 7.0,
    }


def _attention_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """What the op's own cases leave out: many shares, odd sizes, NaN in the scratch page."""
    names = "slots", "kv_heads", "group", "dim", "page", "count", "window", "starts", "length"
    shapes = {
        "decode, window over shares": (3, 2, 4, 32, 64, 24, 600, [1500, 700, -1], 1),
        "decode, fewer keys than shares": (2, 1, 8, 64, 64, 32, 0, [1999, 40], 1),
        "decode, head_dim 80, group 3": (2, 2, 3, 80, 40, 5, 0, [199, 63], 1),
        "decode, group 20": (1, 1, 20, 16, 128, 2, 0, [150], 1),
        "prefill, two sequences": (3, 2, 2, 48, 16, 10, 0, [64, 0], 33),
        "prefill, window not of tiles": (1, 1, 3, 32, 8, 25, 37, [119], 80),
    }
    for label, shape in shapes.items():
        yield Case(label, attention_arguments(device, dtype, **dict(zip(names, shape, strict=True))))
    padding = dict(zip(names, (1, 1, 8, 32, 64, 5, 0, [50], 100), strict=True))
    yield Case("prefill, tiles of padding", attention_arguments(device, dtype, **padding, valid=3, sinks=torch.float32))


def _expert_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Both sides of the boundary between few and many pairs, blocks of all sizes, and the smallest and large scales."""

    def arguments(tokens: int, hidden: int, inter: int, experts: int, choices: int) -> dict[str, Any]:
        return expert_arguments(
            device, dtype, tokens=tokens, hidden=hidden, inter=inter, experts=experts, choices=choices
        )

    yield Case("most choices of few pairs", arguments(1, 32, 32, 8, 4))
    yield Case("most tokens of few pairs", arguments(2, 32, 32, 8, 2))
    yield Case("fewest tokens of many pairs", arguments(2, 96, 64, 8, 4))
    yield Case("batch, 5 experts, 3 choices", arguments(13, 96, 64, 5, 3))
    yield Case("batch, experts in several blocks", arguments(48, 64, 96, 3, 2))
    yield Case("128 tokens, one choice", arguments(128, 32, 160, 4, 1))
    yield Case("517 tokens", arguments(517, 32, 32, 9, 1))
    yield Case("129 tokens", arguments(129, 96, 64, 2, 2))
    yield Case("one expert, 160 wide", arguments(140, 160, 160, 1, 1))
    yield Case("many, sums of a token in two programs", arguments(129, 1568, 32, 2, 1))
    yield Case("blocks of 128, the last one half", arguments(300, 96, 64, 1, 1))
    same, idle = arguments(270, 64, 32, 2, 1), arguments(131, 64, 96, 2, 2)
    same["expert_indices"] = torch.full_like(same["expert_indices"], 1)
    idle["expert_indices"][1:] = -1
    yield Case("many, all to one expert", same)
    yield Case("many, mostly padding", idle)
    if dtype != torch.float16:  # float16 cannot hold these weights
        for pairs, tokens, experts in ("few", 1, 8), ("batch", 40, 8), ("many", 140, 2):
            given = arguments(tokens, 64, 64, experts, 2)
            given["gate_up_scales"][..., 0] = 0  # 2^-127
            given["gate_up_scales"][..., 1] = 160  # 2^33, the largest of bfloat16: every gate and up is clamped
            yield Case(f"smallest and large scales, {pairs}", given)
    for pairs, tokens in ("few", 1), ("batch", 9):
        given = arguments(tokens, 64, 64, 8, 2)
        given["down_scales"][:, 5, 1] = 255
        yield Case(f"a scale that is NaN, {pairs}", given)


def _format_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The other formats: rows and columns that no tile divides, blocks of all sizes, and NaN.

    test_stored_rows.py has longer rows."""
    shapes = {
        # label: (form, tokens, hidden, inter, experts, choices)
        "nf4, rows that no tile divides": (NF4, 140, 192, 64, 2, 1),
        "nf4, blocks of 128, the last one half": (NF4, 300, 64, 64, 1, 1),
        "nf4-32, batch, 5 experts, 3 choices": (NF4_OF_32, 13, 96, 160, 5, 3),
        "bf16, rows that no tile divides": (BF16, 140, 96, 96, 2, 1),
        "bf16, blocks of 128, the last one half": (BF16, 300, 96, 64, 1, 1),
        "bf16, fewest tokens of many pairs": (BF16, 2, 96, 64, 8, 4),
    }
    for label, (form, tokens, hidden, inter, experts, choices) in shapes.items():
        given = expert_arguments(
            device, dtype, tokens=tokens, hidden=hidden, inter=inter, experts=experts, choices=choices, form=form
        )
        yield Case(label, given)
    for form in NF4_OF_32, BF16:
        scales = "scales" if form == NF4_OF_32 else "weight"
        for pairs, tokens in ("few", 2), ("batch", 9), ("many", 140):
            given = expert_arguments(device, dtype, tokens=tokens, hidden=32, inter=32, experts=8, choices=1, form=form)
            given["expert_indices"] %= 3
            given["expert_indices"][1] = -1
            for matrix in "gate_up", "down":
                given[f"{matrix}_{scales}"][3:] = float("nan")
                given[f"{matrix}_bias"][3:] = float("nan")
            yield Case(f"{form.name}, experts that nobody chose are NaN, {pairs}", given)
        for pairs, tokens in ("few", 1), ("batch", 9):
            given = expert_arguments(device, dtype, tokens=tokens, hidden=32, inter=64, experts=4, choices=1, form=form)
            given[f"down_{scales}"][:, 5, 1] = float("nan")
            yield Case(f"a scale that is NaN, {form.name}, {pairs}", given)


def _router_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """More experts than a program of the router takes, a number of choices that is no power of two, many tokens."""
    for label, tokens, experts, choices, form in (
        ("40 experts", 1, 40, 4, MXFP4),
        ("130 experts, 3 choices", 2, 130, 3, MXFP4),
        ("batch, 130 experts, 3 choices", 5, 130, 3, MXFP4),
        ("chunk, 4 experts", 129, 4, 2, MXFP4),
        ("chunk, 37 experts, 3 choices", 150, 37, 3, MXFP4),
        ("chunk, more experts than its router takes", 129, 257, 2, MXFP4),
        ("nf4-32, chunk, 4 experts", 129, 4, 2, NF4_OF_32),
        ("bf16, chunk, 4 experts", 129, 4, 2, BF16),
    ):
        given = expert_arguments(
            device, dtype, tokens=tokens, hidden=64, inter=32, experts=experts, choices=choices, form=form
        )
        x = given.pop("x")
        del given["routing_weights"], given["expert_indices"]
        random = torch.Generator(device).manual_seed(experts)
        router = torch.randn(experts, 64, generator=random, device=device).to(dtype)
        arguments = {
            **given,
            "x": x.float(),
            "norm_weight": torch.ones_like(x[0]),
            "router_weight": router,
            "router_bias": router[:, 0].contiguous(),
            "positions": torch.arange(tokens, device=device),
            "choices": choices,
            "eps": 1e-5,
            "places": None,
            "ranks": 1,
        }
        yield Case(label, OPS["experts_sublayer"].arguments((), arguments))


def _small_inputs(name: str, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """An input of which RMSNorm's eps is the larger part, and one of zeros."""
    for label, arguments in OPS[name].cases(device, dtype):
        if label == _SMALL[name]:
            yield Case(f"{label}, small input", arguments | {"x": arguments["x"] * 1e-3})
            yield Case(f"{label}, input of zeros", arguments | {"x": torch.zeros_like(arguments["x"])})


_MORE_CASES = {
    "sink_attention": (_attention_cases,),
    "experts": (_expert_cases, _format_cases),
    "experts_sublayer": (_router_cases,),
}
# The ops that begin with RMSNorm, and the case whose input is made small.
_SMALL = {
    "attention_sublayer": "one token, the first",
    "experts_sublayer": "one token, one choice",
    "unembed": "one row",
}


def all_cases(name: str, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    yield from OPS[name].cases(device, dtype)
    for more in _MORE_CASES.get(name, ()):
        yield from more(device, dtype)
    if name in _SMALL:
        yield from _small_inputs(name, device, dtype)


def is_covered(name: str, arguments: dict[str, Any]) -> bool:
    kernel = kernels().get(name)
    return kernel is not None and (kernel.covers is None or kernel.covers(arguments))


def covered_cases(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """The arguments of the cases that the kernel of an op is made for, by label."""
    return {label: arguments for label, arguments in all_cases(name, device, dtype) if is_covered(name, arguments)}


def covered_keys(dtypes: Sequence[str]) -> list[tuple[str, str, str]]:
    """(op, dtype, label) of every covered case."""
    return [
        (name, dtype, label) for name in OPS for dtype in dtypes for label in covered_cases(name, CPU, DTYPES[dtype])
    ]


def kernel_deviation(name: str, arguments: dict[str, Any], arch: str, tuned: Sequence[TunedConfigs] = ()) -> Deviation:
    """A kernel against its op's reference, which is computed in float32 from the same inputs.

    Returns the largest deviation of all results and of the arguments that are written in place. It is NaN where the
    kernel wrote in front of a cache or behind it, or to the scratch page without padding.
    """
    op = OPS[name]
    exact = {key: _exact(value) for key, value in arguments.items()}
    given = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    memory = {key: _guarded(arguments[key]) for key in op.mutates}
    given |= {key: whole[GUARD:-GUARD].view(arguments[key].shape) for key, whole in memory.items()}
    kernel = kernels()[name]
    expected = op.results(op.reference(**exact), exact)
    actual = op.results(kernel.bind(op, ConfigChooser(arch, tuned))(**kernel.given(given)), given)
    if not all(_stayed_inside(memory[key], given[key], arguments[key], arguments) for key in op.mutates):
        return WRONG
    found = [dataclasses.astuple(_deviation(got, want)) for got, want in zip(actual, expected, strict=True)]
    return Deviation(
        *(max(numbers, key=lambda number: (number != number, number)) for numbers in zip(*found, strict=True))
    )


def _guarded(tensor: torch.Tensor) -> torch.Tensor:
    """Flat memory that holds a copy of the tensor between GUARD elements on each side."""
    guard = tensor.new_full((GUARD,), 7.0)
    return torch.cat((guard, tensor.flatten(), guard))


def _stayed_inside(memory: torch.Tensor, cache: torch.Tensor, before: torch.Tensor, arguments: dict[str, Any]) -> bool:
    """Whether a call that wrote to `cache`, which lies in `memory`, left the guards as they were, and without padding
    the scratch page too."""
    padded = bool((arguments["positions"] < 0).any())
    guards = torch.cat((memory[:GUARD], memory[-GUARD:]))
    same = padded or torch.equal(cache[0].nan_to_num(), before[0].nan_to_num())
    return same and bool((guards == 7.0).all())


def _exact(argument: Any) -> Any:
    """A copy in float32."""
    if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
        return argument.clone() if isinstance(argument, torch.Tensor) else argument
    return argument.float().clone()


def _deviation(actual: torch.Tensor, expected: torch.Tensor) -> Deviation:
    """The deviation of one result. NaN and rows of zeros must be in the same places, and indices the same.

    Padding has results of zero. It is left out, since deviations are relative to the root mean square of all results.
    """
    if not expected.is_floating_point():
        return Deviation(0.0, 0.0) if torch.equal(actual, expected) else WRONG
    if not torch.equal(actual.isnan(), expected.isnan()):
        return WRONG
    active = (expected != 0).any(dim=-1) if expected.dim() > 1 else torch.ones_like(expected, dtype=torch.bool)
    if bool(actual[~active].any()):
        return WRONG
    if not bool(active.any()):
        return Deviation(0.0, 0.0)
    return deviation(actual[active].nan_to_num(), expected[active].nan_to_num())


class PartsByKernels(TorchDispatchMode):
    """While it is active, gptoss:: ops are computed by their kernels, as lowering replaces the parts of a reference."""

    def __init__(self, chooser: ConfigChooser) -> None:
        super().__init__()
        self._chooser, self._kernels = chooser, kernels()
        self._ops = {op.overload: op for name, op in OPS.items() if name in self._kernels}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (op := self._ops.get(func)) is None:
            return func(*args, **(kwargs or {}))
        kernel = self._kernels[op.name]
        return kernel.bind(op, self._chooser)(**kernel.given(op.arguments(args, kwargs or {})))
