"""What `verify` compares: the lengths, every position that it should, every decode step, every slot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference_runner import Change, Place, loader, unchanged, write_artifact

from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.verification import verify as module
from gptoss_export.verification.cases import DECODED, LAST_ROWS, Case, default_lengths, make_cases
from gptoss_export.verification.report import Report

LENGTHS = [1, 33, 70]
BATCH = "batch 70 46 23"


@pytest.fixture
def verified(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Verify an artifact whose logits are changed."""

    def run(change: Change, dtype: str = "float32", other: Change | None = None) -> Report:
        first = write_artifact(tmp_path / "first", checkpoints["hf"], Sizes((3,), 128, (16, 64)), dtype)
        second = write_artifact(tmp_path / "second", checkpoints["hf"], Sizes((3,), 90, (64,)), dtype)
        changes = {first: change, second: other or unchanged}
        monkeypatch.setattr(module, "load", loader(checkpoints["hf"], changes))
        compare_with = None if other is None else second
        return module.verify(first, checkpoints["hf"], lengths=LENGTHS, compare_with=compare_with)

    return run


def manifest(widths: tuple[int, ...]) -> Any:
    return SimpleNamespace(sizes=Sizes(widths, 5000, (64,)), model=PRESETS["tiny"])


def test_a_batch_for_each_width_of_a_step() -> None:
    found = make_cases([manifest((1, 2, 64)), manifest((1, 3, 32, 80))], [1, 33, 70])
    singles, batches = found[:3], found[3:]
    assert [case.prompts for case in singles] == [(1,), (33,), (70,)]
    assert [(case.label, len(case.prompts)) for case in batches] == [
        ("batch 70 33", 2),
        ("batch 70 46 23", 3),
        ("batch of 32", 32),
        ("batch of 64", 64),
    ]
    widest = batches[-1]
    assert widest.compared == (0, 9, 18, 27, 36, 45, 54, 63)
    lengths = [widest.prompts[slot] for slot in widest.compared]
    assert lengths == sorted(set(lengths), reverse=True) and lengths[0] == 70  # eight lengths
    assert all(widest.prompts[slot] == 1 + slot for slot in range(64) if slot not in widest.compared)
    assert all(case.compared == tuple(range(len(case.prompts))) for case in found[:5])


def test_rows_of_every_case(verified: Any) -> None:
    """The last prompt positions and the decode steps; every position of the longest prompt; all slots of the batch."""
    assert (DECODED, LAST_ROWS) == (8, 24)
    places: dict[Place, None] = {}

    def record(row: torch.Tensor, place: Place) -> torch.Tensor:
        places[place] = None
        return row

    report = verified(record)
    assert report.passed, report.rows
    assert {row.label: row.rows for row in report.rows} == {
        "1": 1 + 8,
        "33": 24 + 8,
        "70": 70 + 8,
        BATCH: 24 + 24 + 23 + 3 * 8,
    }
    assert [row.sampled for row in report.rows] == [False, False, True, False]
    assert all(row.near_ties == 0 and row.oracle is None and row.comparison is None for row in report.rows)
    assert (report.near_tie, report.near_ties, report.tokens) == (1e-4, 0, 78)
    decoded = {place[:3] for place in places if place.decoded}
    single = {(0, length, length + step) for length in LENGTHS for step in range(8)}
    batch = {(slot, length, length + step) for slot, length in enumerate((70, 46, 23)) for step in range(8)}
    assert decoded == single | batch


def one_logit(row: torch.Tensor, share: float) -> torch.Tensor:
    """The largest logit of a row is off by a share of itself."""
    index = row.abs().argmax()
    row[index] *= 1 + share
    return row


@pytest.mark.parametrize(
    ("where", "failing"),
    [
        (lambda place: place.decoded, ["1", "33", "70", BATCH]),
        (lambda place: place.decoded and place.position == place.prompt, ["1", "33", "70", BATCH]),
        (lambda place: place.decoded and place.position == place.prompt + 7, ["1", "33", "70", BATCH]),
        (lambda place: place.slot == 2 and place.decoded, [BATCH]),
        (lambda place: place.slot == 1 and place.position == 45, [BATCH]),
        (lambda place: place.slot == 0 and place.prompt == 70 and place.position == 0, ["70"]),
        (lambda place: place.prompt == 70 and place.position == 3, ["70"]),
        (lambda place: place.slot == 0 and place.prompt == 33 and place.position == 9, ["33"]),
        (lambda place: place.slot == 0 and place.prompt == 33 and place.position == 8, []),  # not among the last 24
    ],
    ids=[
        "decode",
        "first decode step",
        "last decode step",
        "decode of the last slot",
        "prompt of the second slot",
        "first position",
        "early position",
        "first of the last positions",
        "position that is not compared",
    ],
)
def test_a_wrong_row_fails_its_case(verified: Any, where: Any, failing: list[str]) -> None:
    """One logit is off by 5e-4 of itself: by more than float32 explains, by less than ten times the tolerance."""
    report = verified(lambda row, place: one_logit(row, 5e-4) if where(place) else row)
    assert [row.label for row in report.rows if not row.passed] == failing
    assert report.passed == (not failing)


@pytest.mark.parametrize(("share", "passes"), [(1e-5, True), (5e-5, False)])
def test_the_rms_is_gated_too(verified: Any, share: float, passes: bool) -> None:
    report = verified(lambda row, place: row * (1 + share))
    assert all(row.passed == passes and row.gated.max < 1e-4 for row in report.rows)


def test_a_bfloat16_artifact_has_the_bounds_of_the_oracle(verified: Any) -> None:
    report = verified(unchanged, dtype="bfloat16")
    assert report.passed and report.near_tie >= 2**-5
    assert all(row.oracle is not None and row.bound.max > 1e-3 for row in report.rows)
    assert 0 < report.near_ties < report.tokens


def test_a_bfloat16_artifact_with_a_wrong_decode_fails(verified: Any) -> None:
    report = verified(lambda row, place: -row if place.decoded else row, dtype="bfloat16")
    assert not any(row.passed for row in report.rows)


@pytest.mark.parametrize("position", [2, 9])
def test_a_bfloat16_artifact_that_is_wrong_at_one_early_position_fails(verified: Any, position: int) -> None:
    def change(row: torch.Tensor, place: Place) -> torch.Tensor:
        return -row if place.prompt == 70 and place.position == position else row

    assert [row.label for row in verified(change, dtype="bfloat16").rows if not row.passed] == ["70"]


def test_another_artifact_is_compared_on_the_same_rows(verified: Any) -> None:
    report = verified(unchanged, other=lambda row, place: one_logit(row, 5e-4) if place.decoded else row)
    assert not report.passed
    assert all(row.gated.within(row.bound) and not row.passed for row in report.rows)
    assert all(row.comparison.difference.max == pytest.approx(5e-4, rel=0.1) for row in report.rows)


def test_another_artifact_that_is_right_passes(verified: Any) -> None:
    report = verified(unchanged, other=unchanged)
    assert report.passed and report.compare_with.endswith("second")
    assert all(row.comparison.difference.max == 0 and row.comparison.top1 == 1 for row in report.rows)
    value = report.to_json()
    assert value["passed"] is True and value["rows"][0]["comparison"]["gated"]["max"] < 1e-4
    assert all(row["passed"] is True for row in value["rows"])


def test_rows_of_the_longest_prompt_are_spread_over_it() -> None:
    case = Case("long", (10_000,), sampled=True)
    rows = case.prompt_rows(10_000, 2**28 // 100)  # room for a hundred
    assert {index * 100 for index in range(100)} | set(range(9976, 10_000)) == rows
    assert Case("short", (10_000,)).prompt_rows(10_000, 512) == set(range(9976, 10_000))


def test_default_lengths_cover_the_borders_of_both() -> None:
    model = PRESETS["tiny"]
    one, two = (
        SimpleNamespace(model=model, sizes=SimpleNamespace(prefill_chunks=chunks)) for chunks in ((16, 64), (100,))
    )
    assert {63, 64, 65, 99, 100, 101, 131, 132, 133} <= set(default_lengths([one, two], 4000))
    # A smaller chunk runs alone, and behind a larger one.
    assert {15, 16, 17, 79, 80, 81} <= set(default_lengths([one], 4000))
    assert {99, 100, 101} & set(default_lengths([one], 4000)) == set()
