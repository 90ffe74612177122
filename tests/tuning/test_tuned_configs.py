"""Tuned configs: what they say for a shape, how a kernel gets its launch config, and how a file is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tuning_samples import SPACE, Numbers, entry, tuned

from gptoss_export.errors import UsageError
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.launch_config import flatten, unflatten
from gptoss_export.kernels.tuned_configs import TunedConfig, read_tuned_configs, write_tuned_configs


@pytest.mark.parametrize(
    ("entries", "rows"),
    [
        ([entry(4, 8)], 8),
        ([entry(8, 2), entry(4, 8)], 8),
        ([entry(8, 2), entry(3, 1)], 1),  # the nearest of two
        ([entry(2, 2)], 2),  # half as many tokens are near enough
        ([entry(9, 2)], None),
        ([entry(4, 2, hidden=64)], None),
        ([entry(4, 2, dtype="float32")], None),
        ([entry(4, 2, more=1)], None),
        ([dataclasses.replace(entry(), name="other")], None),
        ([], None),
    ],
)
def test_the_nearest_entry_counts(entries: list[TunedConfig], rows: int | None) -> None:
    found = tuned(*entries).find(SPACE)
    assert (found and found["first"].rows) == rows


def test_entries_of_other_kernels_are_refused() -> None:
    old = dataclasses.replace(entry(), config={"first": {"rows": 1}})
    with pytest.raises(UsageError, match=r"entry product has the parts .*'rows'.*run gptoss-export tune again"):
        tuned(old).find(SPACE)


def test_numbers_that_a_kernel_cannot_have_are_refused() -> None:
    """For the very shape. An entry of a near shape is passed over, since its numbers may be right there."""
    message = r"entry product has the numbers .*'rows': 3.*expected numbers of .*run gptoss-export tune again"
    with pytest.raises(UsageError, match=message):
        tuned(entry(rows=3)).find(SPACE)
    assert tuned(entry(8, rows=3)).find(SPACE) is None
    found = tuned(entry(8, rows=3), entry(2, rows=8)).find(SPACE)
    assert found is not None and found["first"].rows == 8
    assert tuned(entry(tokens="four")).find(SPACE) is None


def test_the_first_tuned_configs_that_serve_a_call_win() -> None:
    configs = (tuned(entry(rows=1), arch="sm_80"), tuned(), tuned(entry(rows=2)), tuned(entry(rows=8)))
    chooser = ConfigChooser("sm_90", configs)
    assert flatten(chooser.choose(SPACE)) == [2, 1, 1, 1]
    assert chooser.chosen == {str(SPACE): configs[2]} and chooser.used == [configs[2]]
    guessing = ConfigChooser("sm_89", configs)
    assert flatten(guessing.choose(SPACE)) == [4, 2, 1, 1]
    assert guessing.chosen == {str(SPACE): None} and guessing.used == []
    assert unflatten(flatten(SPACE.default), Numbers, Numbers) == list(SPACE.default.values())


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = tuned(entry(), entry(8)).with_entries([entry(8, rows=1)])
    write_tuned_configs(written, tmp_path / "t.json")
    read = read_tuned_configs(tmp_path / "t.json")
    assert set(map(str, read.entries)) == set(map(str, written.entries)) and len(read.entries) == 2
    assert read.label == written.label and read.label.startswith("NVIDIA H200, triton 3.6.0, ")
    assert list(tmp_path.iterdir()) == [tmp_path / "t.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not json", "cannot be read"),
        ([], "holds a list, expected an object"),
        ({"schema": None}, "schema is None, expected 2"),
        ({"schema": 1}, "schema is 1, expected 2"),
        ({"arch": 90, "entries": None}, r"(?s)arch: found 90, expected str.*entries: found None, expected list"),
        ({"versions": {"triton": 3.6}}, "versions: found .*expected strings by name"),
        ({"entries": [1, {"name": "x"}]}, r"(?s)entries\[0\]: expected an object.*entries\[1\]: expected an object"),
        (
            {"entries": [vars(entry()) | {"config": {"first": {"rows": 0}}}]},
            r"entries\[0\]: config: found .*numbers from 1",
        ),
        ({"entries": [vars(entry()) | {"shape": {"tokens": 1.5}}]}, r"entries\[0\]: shape: found"),
        ({"entries": [vars(entry()) | {"shape": {"tokens": -4}}]}, r"entries\[0\]: shape: found"),
        ({"entries": [vars(entry()) | {"us": "1"}]}, "us, default_us: expected microseconds"),
        ({"entries": [vars(entry()) | {"us": float("inf")}]}, "found Infinity, expected a finite number"),
        ({"entries": [vars(entry()) | {"us": 0.0}]}, "us, default_us: expected microseconds"),
    ],
)
def test_a_file_that_holds_no_tuned_configs_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "t.json"
    write_tuned_configs(tuned(entry()), path)
    if isinstance(change, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(UsageError, match=message):
        read_tuned_configs(path)
