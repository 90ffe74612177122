"""The Triton kernels in Triton's interpreter, against the references of their ops, on any machine.

The dtypes are float32 and float16: the interpreter computes tl.dot wrongly for bfloat16. The interpreter has to be
switched on before Triton is first imported, and another test of this process may have imported it. So the cases run
in subprocesses, which are this file run as a script, and each test reads its own entry of their output.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gptoss_plugins.arch import INTERPRETER
from kernel_cases import CPU, DTYPES, all_cases, covered_cases, covered_keys, is_covered, kernel_deviation

from gptoss_export.kernels.registry import kernels
from gptoss_export.model.ops import OPS
from gptoss_export.verification.metric import TOLERANCES, Deviation

INTERPRETED = "float32", "float16"
# Ops of a training step, and the cases that are interpreted in float16 too.
TRAINING = {
    "grouped_linear": ("even", "even, transposed"),
    "grouped_outer": ("even",),
    "packed_attention": ("packed, window",),
    "packed_attention_backward": ("packed, window",),
    "rotate": ("33 tokens, 6 heads of 80",),
}


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The deviations of the cases that this run has chosen, by 'op/dtype/label'. Each dtype has a process, and one test
    process runs them for all: the interpreter is slow."""

    from artifacts import made_once  # which the process of the interpreter has no path to

    def make(root: Path) -> None:
        (root / "found.json").write_text(json.dumps(_deviations(request)), encoding="utf-8")

    return json.loads((made_once(tmp_path_factory, "interpreted", make) / "found.json").read_text(encoding="utf-8"))


def _deviations(request: pytest.FixtureRequest) -> dict[str, Any]:
    tests = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = [item.callspec.params for item in tests if "label" in item.callspec.params]
    runs = []
    for dtype in INTERPRETED:
        keys = [(params["name"], params["label"]) for params in chosen if params["dtype"] == dtype]
        command = [sys.executable, __file__, dtype, json.dumps(keys)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        folder, pipe = Path(__file__).parents[2], subprocess.PIPE
        if keys:
            runs.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True))
    found: dict[str, Any] = {}
    for run in runs:
        output, errors = run.communicate(timeout=1800)
        assert run.returncode == 0, errors
        found |= json.loads(output)
    return found


def _chosen_keys() -> list[tuple[str, str, str]]:
    """Formats of experts other than MXFP4 in float32 alone, and most of the training ops: nothing in their kernels
    depends on the dtype, and the interpreter is slow."""
    return [
        (name, dtype, label)
        for name, dtype, label in covered_keys(INTERPRETED)
        if dtype == "float32"
        or not (any(form in label for form in ("nf4", "bf16")) or label not in TRAINING.get(name, (label,)))
    ]


@pytest.mark.parametrize(("name", "dtype", "label"), _chosen_keys())
def test_interpreted_kernel_agrees(interpreted: dict[str, Any], name: str, dtype: str, label: str) -> None:
    found = Deviation(**interpreted[f"{name}/{dtype}/{label}"])
    assert found.within(TOLERANCES[DTYPES[dtype]]), str(found)


@pytest.mark.parametrize("name", [name for name, kernel in kernels().items() if kernel.covers is not None])
def test_cases_are_on_both_sides_of_what_is_covered(name: str) -> None:
    found = {is_covered(name, arguments) for _, arguments in all_cases(name, CPU, torch.float32)}
    assert found == {True, False}


def test_composed_ops_have_calls_that_are_not_covered() -> None:
    """Their parts have kernels of their own, which are for these calls."""
    composed = [name for name, op in OPS.items() if op.parts]
    assert composed and all(kernels()[name].covers is not None for name in composed)


def _interpret(dtype: str, keys: list[list[str]]) -> None:
    torch.set_num_threads(1)  # two of these processes run at once
    found = {
        f"{name}/{dtype}/{label}": dataclasses.asdict(kernel_deviation(name, arguments, INTERPRETER))
        for name in OPS
        for label, arguments in covered_cases(name, CPU, DTYPES[dtype]).items()
        if [name, label] in keys
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    _interpret(sys.argv[1], json.loads(sys.argv[2]))
