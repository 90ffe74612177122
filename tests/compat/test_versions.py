"""The supported versions of torch and Triton: in code and in pyproject.toml they are the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from gptoss_export.compat import versions

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def requirement(package: str) -> str:
    everything = [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["cuda"]]
    (found,) = [entry for entry in everything if re.match(rf"{package}\b", entry)]
    return found


@pytest.mark.parametrize("package", versions.SUPPORTED)
def test_bounds_of_pyproject(package: str) -> None:
    """From the first supported version up to, and without, the one after the last."""
    supported = versions.SUPPORTED[package]
    numbers = [tuple(map(int, version.split("."))) for version in supported]
    major, last = numbers[-1]
    assert numbers == [(major, number) for number in range(numbers[0][1], last + 1)]
    assert requirement(package) == f"{package}>={supported[0]},<{major}.{last + 1}"


def test_what_is_installed_here_is_supported() -> None:
    assert versions.version_problem("torch") is None


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ("2.13.0", None),
        ("2.11.0+cu130", None),
        ("2.10.1", "torch: found 2.10.1, expected 2.11, 2.12, 2.13"),
        ("2.14.0a0", "torch: found 2.14.0a0, expected 2.11, 2.12, 2.13"),
        (None, "torch: not installed, expected 2.11, 2.12, 2.13"),
    ],
)
def test_other_versions(monkeypatch: pytest.MonkeyPatch, found: str | None, problem: str | None) -> None:
    monkeypatch.setitem(versions.SUPPORTED, "torch", ("2.11", "2.12", "2.13"))
    monkeypatch.setattr(versions, "installed", lambda package: found)
    assert versions.version_problem("torch") == problem


def test_a_package_that_is_not_installed() -> None:
    assert versions.installed("no-such-package") is None
    assert versions.installed("torch") is not None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("3.7.1", "3.7.0+cu130", 0), ("3.7.1", "3.9.0", 2), ("3.9.0", "3.7.1", 2), ("3.10", "3.9", 1)],
)
def test_distance_counts_minor_versions(first: str, second: str, expected: int) -> None:
    assert versions.distance(first, second) == expected
    assert all(versions.distance(first, other) > 1000 for other in ("4.0", "", "unknown"))
