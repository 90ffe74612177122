"""What the kernels of a training step promise beyond their references: equal bits each time, that neither rows behind
the last end nor experts without rows change a bit, and that they write their results alone.

The kernels run in Triton's interpreter, in a process that is this file run as a script."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gptoss_plugins.arch import INTERPRETER
from interpreter_process import found_by_interpreter
from kernel_cases import CPU, covered_cases
from launch_recorder import record
from training_calls import TRAINING

from gptoss_export.compat import mutation_analysis
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.expert_formats import BF16, MXFP4, NF4_OF_32
from gptoss_export.model.mxfp4 import NAN_SCALE
from gptoss_export.model.ops import OPS, draw
from gptoss_export.targets.aoti import cross_compile
from gptoss_export.targets.aoti.compile import COMPILER

NAN = float("nan")
COUNTS, BEHIND, ROWS, COLUMNS = (0, 21, 3, 0), 5, 32, 64  # rows of each expert, rows behind; of a matrix
LINEAR = [f"{form.name}{label}" for form in (MXFP4, NF4_OF_32, BF16) for label in ("", ", transposed")]


def linear_arguments(label: str) -> dict[str, Any]:
    name, _, transposed = label.partition(", ")
    form = next(form for form in (MXFP4, NF4_OF_32, BF16) if form.name == name)
    random = torch.Generator().manual_seed(1)
    weight, scales, table = draw.stored(form, len(COUNTS), ROWS, COLUMNS, random, CPU, torch.float32)
    lines, made = sum(COUNTS) + BEHIND, COLUMNS if transposed else ROWS
    return {
        "x": torch.randn(lines, ROWS if transposed else COLUMNS, generator=random),
        "matrix_weight": weight,
        "matrix_scales": scales,
        "matrix_table": table,
        "bias": torch.randn(len(COUNTS), made, generator=random),
        "added": torch.randn(lines, made, generator=random),
        "ends": torch.tensor(COUNTS, dtype=torch.int32).cumsum(0).int(),
        "transposed": bool(transposed),
    }


def outer_arguments() -> dict[str, Any]:
    random = torch.Generator().manual_seed(2)
    a, b = (torch.randn(sum(COUNTS) + BEHIND, width, generator=random) for width in (8, 48))
    return {"a": a, "b": b, "ends": torch.tensor(COUNTS, dtype=torch.int32).cumsum(0).int()}


def filled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with NaN in the rows behind the last end, and in the matrices of the experts without rows."""
    given = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    for name in {"x", "a", "b", "added"} & given.keys():
        given[name][sum(COUNTS) :] = NAN
    if "matrix_weight" in given:
        scales = given["matrix_weight"] if given["matrix_scales"] is None else given["matrix_scales"]
        scales[torch.tensor(COUNTS) == 0] = NAN_SCALE if scales.dtype == torch.uint8 else NAN
    return given


def results(name: str, arguments: dict[str, Any]) -> list[torch.Tensor]:
    kernel = kernels()[name]
    bound = kernel.bind(OPS[name], ConfigChooser(INTERPRETER, ()))
    return OPS[name].results(bound(**kernel.given(arguments)), arguments)


def same_bits(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    """Whether results are finite and the same."""
    return all(
        bool(torch.isfinite(got).all()) and torch.equal(got.view(torch.int32), want.view(torch.int32))
        for got, want in zip(found, wanted, strict=True)
    )


@pytest.fixture(scope="module")
def found() -> dict[str, bool]:
    return found_by_interpreter(__file__)


@pytest.mark.parametrize("label", [*LINEAR, "outer products"])
def test_rows_behind_and_experts_without_rows_change_no_bit(found: dict[str, bool], label: str) -> None:
    assert found[label]


def test_gradients_of_attention_have_the_same_bits_each_time(found: dict[str, bool]) -> None:
    assert found["gradients"]


@pytest.mark.skipif(bool(cross_compile.problems()), reason="; ".join(cross_compile.problems()))
def test_torch_takes_results_alone_for_written() -> None:
    """It copies what it takes for written before each launch, and a matrix of all experts is large."""
    wrap = pytest.importorskip("torch._higher_order_ops.triton_kernel_wrap")
    (name,) = [name for name in mutation_analysis.NAMES if hasattr(wrap, name)]
    launches = [launch for op, arguments, _ in TRAINING.values() for launch in record(op, arguments())]
    found: dict[str, set[str]] = {}
    with COMPILER.environment("cuda", "sm_90"):
        for launch in launches:
            given = {key: value for key, value in launch.arguments.items() if key in launch.kernel.arg_names}
            answer = getattr(wrap, name)(launch.kernel, given, {})
            written = answer if isinstance(answer, list) else [access.name for access in answer.read_writes.writes]
            found.setdefault(launch.name, set()).update(written)
    assert found == {
        "_arrange_words": {"arranged"},
        "_delta": {"delta", "sink_sums"},
        "_grouped_linear": {"out"},
        "_grouped_linear_transposed": {"out"},
        "_grouped_outer": {"out"},
        "_key_gradients": {"dk", "dv"},
        "_packed_attention": {"out", "log_total"},
        "_query_gradients": {"dq"},
        "_rotate": {"out"},
    }


def _interpret() -> None:
    torch.set_num_threads(1)
    found = {}
    for label in LINEAR:
        given = linear_arguments(label)
        found[label] = same_bits(results("grouped_linear", filled(given)), results("grouped_linear", given))
    given = outer_arguments()
    found["outer products"] = same_bits(results("grouped_outer", filled(given)), results("grouped_outer", given))
    given = covered_cases("packed_attention_backward", CPU, torch.float32)["packed, window"]
    first, second = (results("packed_attention_backward", given) for _ in range(2))
    found["gradients"] = same_bits(first, second)
    print(json.dumps(found))


if __name__ == "__main__":
    _interpret()
