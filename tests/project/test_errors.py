"""One error names every problem of a check, up to a number that a reader can take in."""

from __future__ import annotations

import pytest

from gptoss_export.errors import LISTED, LONGEST, ArtifactError, CheckpointError, GptOssExportError, raise_all


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


@pytest.mark.parametrize("kind", [GptOssExportError, ArtifactError])
def test_a_long_message_keeps_its_beginning_and_its_end(kind: type[GptOssExportError]) -> None:
    """A file of somebody else may hold a text of any length, and a message quotes it."""
    assert str(kind("x" * LONGEST)) == "x" * LONGEST
    beginning, end = "manifest.json: found ", "; build the artifact again"
    text = str(kind(f"{beginning}{'y' * 100_000}{end}"))
    assert text.startswith(f"{beginning}yyy") and text.endswith(f"yyy{end}")
    assert f"[... {100_000 + len(beginning + end) - LONGEST} characters left out ...]" in text
    assert len(text) < LONGEST + 50
