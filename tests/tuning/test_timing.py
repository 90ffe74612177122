"""Which launch configs are refused, and which errors are not: on a CPU, with kernels of these tests."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tuning_samples import SPACE, Numbers

from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compat.triton import compile_errors
from gptoss_export.errors import RunError
from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import LaunchConfig, flatten
from gptoss_export.model.ops import OPS, Op
from gptoss_export.tuning.op_calls import OpCall, op_calls
from gptoss_export.tuning.timing import SETS, Timing

pytest.importorskip("triton")

REFUSED = float("inf")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config takes as many microseconds as its first number, and the GPU has a terabyte."""
    monkeypatch.setattr(Timing, "_time", lambda self, config: float(flatten(config)[0]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))


@pytest.fixture(scope="module")
def step() -> OpCall:
    """The attention of a decode step."""
    calls = op_calls(PRESETS["tiny"], Sizes((1,), 256, (64,)), torch.bfloat16, "sm_90")
    return next(call for call in calls if call.space.name == "attention_step")


def timing(call: OpCall, kernel: Callable[..., Any]) -> Timing:
    return Timing(dataclasses.replace(call, kernel=Kernel(kernel)), "sm_90", 256, torch.device("cpu"))


def rows(count: int) -> LaunchConfig:
    return {"qkv": Numbers(count, 1)}


def test_a_config_with_other_results_is_refused(step: OpCall) -> None:
    """What it returns, and what it writes. The caches hold the right values of the config before."""

    def kernel(config: list[int], arch: str, **arguments: Any) -> torch.Tensor:
        assert arch == "sm_90"
        if config[0] == 4:
            arguments |= {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
        result = OPS["attention_sublayer"].reference(**arguments)
        return result * 1.1 if config[0] == 8 else result

    timed = timing(step, kernel)
    assert [timed.microseconds(rows(count)) for count in (2, 4, 8, 1)] == [2.0, REFUSED, REFUSED, 1.0]
    assert [(refused.config, refused.wrong) for refused in timed.refused] == [(rows(4), True), (rows(8), True)]
    assert str(timed.refused[0]) == (
        "{'qkv': {'rows': 4, 'warps': 1}}: its results differ from those with the kernel's own guess"
    )


def test_the_scratch_page_of_a_cache_is_no_result(step: OpCall) -> None:
    def kernel(config: list[int], arch: str, **arguments: Any) -> torch.Tensor:
        result = OPS["attention_sublayer"].reference(**arguments)
        arguments["k_cache"][0] = config[0]
        return result

    timed = timing(step, kernel)
    assert [timed.microseconds(rows(count)) for count in (2, 4)] == [2.0, 4.0] and timed.refused == []


def raising(problems: dict[int, Exception]) -> Callable[..., torch.Tensor]:
    def kernel(config: list[int], arch: str, **arguments: Any) -> torch.Tensor:
        if config[0] in problems:
            raise problems[config[0]]
        return OPS["attention_sublayer"].reference(**arguments)

    return kernel


def test_a_config_that_does_not_run_is_refused(step: OpCall) -> None:
    """What Triton raises where it cannot compile or launch, and too little memory."""
    compilation, resources, ptxas = compile_errors()
    node = ast.parse("x").body[0]
    problems = {
        4: compilation("def kernel():", node, "no such tile"),
        8: torch.OutOfMemoryError("19 GB"),
        16: RuntimeError("PassManager::run failed\nmore"),
        32: resources(300_000, 232_448, "shared memory"),
        64: ptxas("too many registers\nmore"),
    }
    timed = timing(step, raising(problems))
    assert timed.microseconds(rows(2)) == 2.0
    assert all(timed.microseconds(rows(count)) == REFUSED for count in problems)
    whys = [refused.why for refused in timed.refused]
    assert whys[:3] == ["no such tile", "19 GB", "PassManager::run failed"]
    assert "shared memory, Required: 300000" in whys[3] and whys[4] == "too many registers"
    assert not any(refused.wrong for refused in timed.refused)


def test_a_gpu_that_fails_ends_tuning(step: OpCall) -> None:
    timed = timing(step, raising({32: torch.AcceleratorError("an illegal memory access")}))
    assert timed.microseconds(rows(2)) == 2.0
    message = r"(?s)attention_step .*the GPU fails with .*'rows': 32.*illegal memory.*--only"
    with pytest.raises(RunError, match=message):
        timed.microseconds(rows(32))


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, AssertionError, TypeError])
def test_a_bug_in_a_kernel_is_not_a_refusal(step: OpCall, kind: type[Exception]) -> None:
    """It is raised as it is, and says with which launch config."""
    timed = timing(step, raising({8: kind("rows must divide the heads")}))
    assert timed.microseconds(rows(2)) == 2.0
    with pytest.raises(kind, match="rows must divide the heads") as raised:
        timed.microseconds(rows(8))
    assert timed.refused == []
    assert any("attention_step" in note and "'rows': 8" in note for note in raised.value.__notes__)


def test_two_sets_of_inputs_have_to_fit(step: OpCall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1 << 40))
    with pytest.raises(RunError, match=r"attention_step .*bytes of inputs are needed twice, 1,000 are free"):
        timing(step, lambda **arguments: None)


def test_a_new_op_needs_no_change_of_tuning() -> None:
    """Tuning asks the op itself how its arguments are drawn and what counts of its results."""
    seen: list[dict[str, Any]] = []
    op = Op(
        name="counted",
        reference=lambda x, counts: None,
        fake=lambda x, counts: None,
        cases=lambda device, dtype: iter(()),
        mutates=("counts",),
        realistic={"counts": lambda draw, like: torch.full(like.shape, draw.position)},
        written=lambda arguments: [arguments["counts"][:2]],
    )

    def kernel(x: torch.Tensor, counts: torch.Tensor, config: list[int], arch: str) -> None:
        seen.append({"x": x.clone(), "counts": counts.clone()})
        counts[0] += 1
        counts[2] += config[0]  # not among what counts
        if config[0] == 8:
            counts[1] = 0

    meta = {
        "x": torch.empty(5, dtype=torch.bfloat16, device="meta"),
        "counts": torch.empty(3, dtype=torch.int64, device="meta"),
    }
    timed = timing(OpCall(op, Kernel(kernel), SPACE, meta), kernel)
    assert [timed.microseconds(rows(count)) for count in (2, 4, 8)] == [2.0, 4.0, REFUSED]
    assert [refused.wrong for refused in timed.refused] == [True]
    # Every set at another position; every call finds the arguments as they were drawn.
    assert [call["counts"].tolist() for call in seen] == [[position] * 3 for position in (32, 96, 160, 224)] * 3
    assert len(seen) == 3 * SETS and all(call["x"].dtype == torch.bfloat16 for call in seen)
