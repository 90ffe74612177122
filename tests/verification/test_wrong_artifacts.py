"""`verify` fails artifacts that compute another model, and passes right ones of many seeds, whatever the size.

An artifact is the decoder run eagerly in the artifact's dtype. A wrong one has one fault that a compiler, a kernel or
a checkpoint reader could have. The oracle is transformers on the checkpoint. `wrong_artifacts.py` prints the whole
table: every fault of every model, in both dtypes, on few rows and on many.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from eager_artifact import Where
from eager_verify import FEW, MANY, Rows, distance, verified
from faults import FAULTS, MODELS, full_attention, swap_experts

from gptoss_export.artifact.programs import Decode, Prefill, Sizes
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic

SMALL = ("two layers", "odd")  # the models that take the least time


def written(folder: Path, model: str, seed: int) -> Path:
    write_synthetic(folder, MODELS[model], LAYOUTS["hf"], seed, torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {model: written(root / model, model, 7) for model in MODELS}


# The bounds of bfloat16 are the wider ones, and those of few rows are wider than those of many. So every fault is
# tried there on a small model, the subtlest on the larger ones, and a few in float32.
WRONG = [
    *((fault, SMALL[index % 2], "bfloat16", FEW) for index, fault in enumerate(FAULTS)),
    ("frequencies of plain RoPE", "tiny", "bfloat16", FEW),
    ("the last row of a page is lost", "tiny", "bfloat16", FEW),
    ("no attention factor", "two layers", "float32", FEW),
    ("one row off from the second page on", "odd", "float32", FEW),
    ("the last row of a page is lost", "two layers", "bfloat16", MANY),
]


@pytest.mark.parametrize(
    ("fault", "model", "dtype", "rows"),
    WRONG,
    ids=[f"{fault}-{model}-{dtype}-{'few' if rows is FEW else 'many'}" for fault, model, dtype, rows in WRONG],
)
def test_a_wrong_artifact_fails(
    models: dict[str, Path], tmp_path: Path, fault: str, model: str, dtype: str, rows: Rows
) -> None:
    report = verified(tmp_path / "a", models[model], rows, dtype, FAULTS[fault])
    assert not report.passed and distance(report) > 1, [(row.label, row.gated, row.bound) for row in report.rows]


@pytest.mark.parametrize("seed", range(10))
def test_a_right_artifact_in_bfloat16_passes(tmp_path: Path, seed: int) -> None:
    report = verified(tmp_path / "a", written(tmp_path / "c", SMALL[seed % 2], seed), FEW, "bfloat16")
    assert report.passed and distance(report) < 1, [(row.label, row.gated, row.bound) for row in report.rows]


@pytest.mark.parametrize(
    ("model", "dtype", "rows", "seed"),
    [
        ("four layers", "bfloat16", MANY, 103),  # the oracle and the artifact decide other near ties
        ("tiny", "bfloat16", FEW, 7),
        ("odd", "float32", FEW, 7),
    ],
)
def test_a_right_artifact_passes(tmp_path: Path, model: str, dtype: str, rows: Rows, seed: int) -> None:
    report = verified(tmp_path / "a", written(tmp_path / "c", model, seed), rows, dtype)
    assert report.passed, [(row.label, row.gated, row.bound, row.tie, row.tie_bound) for row in report.rows]


TWO_SLOTS = Rows(Sizes((2,), 256, (16, 64)), [33, 80])


def in_decode(program: object, slot: int) -> bool:
    return isinstance(program, Decode)


def in_small_chunk(program: object, slot: int) -> bool:
    return isinstance(program, Prefill) and program.chunk == 16


def in_second_slot(program: object, slot: int) -> bool:
    return isinstance(program, Prefill) and slot == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("where", "failing"),
    [
        (in_decode, ["33", "80", "batch 80 40"]),
        (in_small_chunk, ["80", "batch 80 40"]),  # 64 and 16 tokens; 33 and 40 are one chunk of 64
        (in_second_slot, ["batch 80 40"]),
    ],
    ids=["decode", "one chunk size", "one slot"],
)
def test_a_fault_in_one_place_fails_its_cases(
    models: dict[str, Path], tmp_path: Path, where: Where, failing: list[str], dtype: str
) -> None:
    report = verified(tmp_path / "a", models["two layers"], TWO_SLOTS, dtype, swap_experts, where)
    assert [row.label for row in report.rows if not row.passed] == failing


def test_a_fault_of_late_positions_fails_the_long_prompt_alone(models: dict[str, Path], tmp_path: Path) -> None:
    """Without a window nothing differs before position 32."""
    rows = Rows(Sizes((1,), 256, (16,)), [9, 40])
    report = verified(tmp_path / "a", models["two layers"], rows, "bfloat16", full_attention)
    assert [row.passed for row in report.rows] == [True, False]
