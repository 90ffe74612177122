"""One error names every problem of a check, up to a number that a reader can take in."""

from __future__ import annotations

import pytest

from gptoss_export.errors import LISTED, CheckpointError, raise_all


def message(count: int) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        raise_all(CheckpointError, "heading", (f"problem {index}" for index in range(count)))
    return str(caught.value).splitlines()


def test_no_problem_is_no_error() -> None:
    raise_all(CheckpointError, "heading", [])


@pytest.mark.parametrize("count", [1, LISTED])
def test_all_are_listed(count: int) -> None:
    assert message(count) == ["heading", *(f"  - problem {index}" for index in range(count))]


@pytest.mark.parametrize("more", [1, 453])
def test_the_rest_is_counted(more: int) -> None:
    lines = message(LISTED + more)
    assert lines[:-1] == ["heading", *(f"  - problem {index}" for index in range(LISTED))]
    assert lines[-1] == f"  - and {more} more"
