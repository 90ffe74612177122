"""How the fastest launch config is found."""

from __future__ import annotations

import pytest
from tuning_samples import SPACE, Numbers

from gptoss_export.kernels.launch_config import LaunchConfig, flatten
from gptoss_export.tuning.search import search


def test_search_finds_the_best_of_each_number() -> None:
    wanted = {"first": Numbers(8, 1), "second": Numbers(4, 1)}

    def microseconds(config: LaunchConfig) -> float:
        return 10.0 + sum(abs(a - b) for a, b in zip(flatten(config), flatten(wanted), strict=True))

    reported: list[int] = []
    best = search(SPACE, microseconds, reported.append)
    assert best.config == wanted and best.us == 10.0 and best.default_us == microseconds(SPACE.default)
    assert best.tried < 4 * 3 * 3
    assert reported == list(range(1, best.tried))


@pytest.mark.parametrize("gain", [0.0, 0.005, float("-inf")])
def test_search_keeps_the_guess_where_nothing_is_faster(gain: float) -> None:
    """As fast, faster by less than noise, or refused."""
    best = search(SPACE, lambda config: 10.0 if config == SPACE.default else 10.0 * (1 - gain))
    assert best.config == SPACE.default and best.us == best.default_us == 10.0


def test_search_ends_where_the_guess_is_refused() -> None:
    best = search(SPACE, lambda config: float("inf") if config == SPACE.default else 1.0)
    assert best.config == SPACE.default and best.us == best.default_us == float("inf") and best.tried == 1


def test_search_keeps_the_guess_where_a_gain_does_not_repeat() -> None:
    seen = []

    def microseconds(config: LaunchConfig) -> float:
        seen.append(config)
        return 5.0 if seen.count(config) == 1 and config != SPACE.default else 10.0

    assert search(SPACE, microseconds).config == SPACE.default
