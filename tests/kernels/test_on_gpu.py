"""The Triton kernels on a GPU against the references of their ops, in float32 and bfloat16, and at 20b sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernel_cases import (
    DTYPES,
    attention_arguments,
    covered_cases,
    covered_keys,
    expert_arguments,
    is_covered,
    kernel_deviation,
)
from unseen import FILLS, TOKEN_INPUTS, Unseen, marks_keys

from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels, shipped_tuned_configs
from gptoss_export.kernels.tuned_configs import TunedConfigs
from gptoss_export.model.expert_formats import BF16, MXFP4, NF4, NF4_OF_32, ExpertFormat
from gptoss_export.model.ops import OPS
from gptoss_export.verification.metric import TOLERANCES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False"),
]
CUDA = torch.device("cuda")
Tuned = Callable[[], tuple[TunedConfigs, ...]]
# With the kernels' own guess, and with the shipped tuned configs of each Triton version first.
WITH_CONFIGS = pytest.mark.parametrize(
    "tuned",
    [tuple, shipped_tuned_configs, lambda: shipped_tuned_configs()[::-1]],
    ids=["guess", "tuned", "tuned with another Triton"],
)


def arch() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def experts_of_20b(dtype: torch.dtype, tokens: int, form: ExpertFormat = MXFP4) -> dict[str, object]:
    return expert_arguments(CUDA, dtype, tokens=tokens, hidden=2880, inter=2880, experts=32, choices=4, form=form)


@pytest.mark.parametrize(("name", "dtype", "label"), covered_keys(("float32", "bfloat16")))
def test_kernel_agrees(name: str, dtype: str, label: str) -> None:
    found = kernel_deviation(name, covered_cases(name, CUDA, DTYPES[dtype])[label], arch())
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


@WITH_CONFIGS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 2, 8, 64, 512, 2048])
def test_experts_agree_at_20b_sizes(tokens: int, dtype: str, tuned: Tuned) -> None:
    found = kernel_deviation("experts", experts_of_20b(DTYPES[dtype], tokens), arch(), tuned())
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


@pytest.mark.parametrize("form", [NF4, NF4_OF_32, BF16], ids=lambda form: form.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 2, 8, 64, 256, 512, 2048])
def test_experts_of_other_formats_agree_at_20b_sizes(tokens: int, dtype: str, form: ExpertFormat) -> None:
    found = kernel_deviation("experts", experts_of_20b(DTYPES[dtype], tokens, form), arch())
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


@WITH_CONFIGS
@pytest.mark.parametrize("form", [MXFP4, NF4, BF16], ids=lambda form: form.name)
@pytest.mark.parametrize("tokens", [8, 64, 512, 2048])
def test_experts_give_the_same_bits_each_time(tokens: int, form: ExpertFormat, tuned: Tuned) -> None:
    """A product that reads overwritten weights gives other bits in nearly every run."""
    arguments = experts_of_20b(torch.bfloat16, tokens, form)
    assert is_covered("experts", arguments)
    experts = kernels()["experts"].bind(OPS["experts"], ConfigChooser(arch(), tuned()))
    first = experts(**arguments)
    assert all(torch.equal(experts(**arguments), first) for _ in range(30))


@WITH_CONFIGS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [0, 128])
@pytest.mark.parametrize("length", [1, 512])
@pytest.mark.parametrize("context", [1, 4097, 8191])
def test_attention_agrees_at_20b_sizes(context: int, length: int, window: int, dtype: str, tuned: Tuned) -> None:
    """The last query is at context - 1. A chunk that is longer than its context is padded."""
    arguments = attention_arguments(
        CUDA,
        DTYPES[dtype],
        slots=2,
        kv_heads=8,
        group=8,
        dim=64,
        page=64,
        count=128,
        window=window,
        starts=[max(0, context - length)],
        length=length,
        valid=min(length, context),
    )
    found = kernel_deviation("sink_attention", arguments, arch(), tuned())
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


def check_unseen(name: str, arguments: dict[str, Any], tuned: Tuned = tuple) -> None:
    """Raises AssertionError where something that the call must not see changes a bit of its results."""
    kernel = kernels()[name].bind(OPS[name], ConfigChooser(arch(), tuned()))
    same = Unseen(name, arguments).same_bits(kernel, list(FILLS.values()))
    assert same == [True] * len(FILLS), dict(zip(FILLS, same, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TOKEN_INPUTS)
def test_what_is_not_seen_changes_no_bit(name: str, dtype: str) -> None:
    tried = 0
    for label, arguments in covered_cases(name, CUDA, DTYPES[dtype]).items():
        if label.startswith("a scale that is NaN"):  # gives NaN whatever is filled
            continue
        if Unseen(name, arguments).can_fail:
            check_unseen(name, arguments)
            tried += 1
    assert tried


@WITH_CONFIGS
@pytest.mark.parametrize("window", [0, 128])
@pytest.mark.parametrize("length", [1, 512])
@pytest.mark.parametrize("context", [1, 4097])
def test_what_attention_does_not_see_changes_no_bit_at_20b_sizes(
    context: int, length: int, window: int, tuned: Tuned
) -> None:
    arguments = attention_arguments(
        CUDA,
        torch.bfloat16,
        slots=2,
        kv_heads=8,
        group=8,
        dim=64,
        page=64,
        count=128,
        window=window,
        starts=[max(0, context - length)],
        length=length,
        valid=min(length, context),
    )
    check_unseen("sink_attention", arguments, tuned)


def test_a_value_that_is_not_finite_marks_its_key() -> None:
    write = kernels()["kv_write"].bind(OPS["kv_write"], ConfigChooser(arch(), ()))
    assert marks_keys(covered_cases("kv_write", CUDA, torch.bfloat16)["head_dim 80"], write)
