"""A workload: what its file may hold, and what is reported of serving it."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hashing_executor import hashing_runner

from gptoss_export import workload as module
from gptoss_export.errors import RunError, UsageError
from gptoss_export.progress import Progress
from gptoss_export.workload import Spread, Workload, check_fits, read_workload, serve

SEED = 1  # of prompts without the tokens that fail


def written(folder: Path, data: Any) -> Path:
    path = folder / "workload.json"
    path.write_text(json.dumps(data))
    return path


def test_a_file(tmp_path: Path) -> None:
    data = {"name": "day", "seed": 7, "requests": [{"prompt": 5, "output": 3}, {"prompt": 1, "output": 9}]}
    assert read_workload(written(tmp_path, data)) == Workload("day", 7, ((5, 3), (1, 9)))


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"requests": []}, ["requests: found none"]),
        ({"requests": [{"prompt": 0, "output": 3}]}, ["request 0: found [0, 3], expected a prompt and an output"]),
        ({"requests": [{"prompt": 1, "output": "3"}]}, ["request 0: found [1, '3']"]),
        ({"requests": [{"prompt": 1}]}, ["expected an object with prompt, output"]),
        ({"requests": {}}, ["found {}, expected a list"]),
        ({"seed": -1, "name": 3}, ["seed: found -1", "name: found 3, expected text"]),
        ({"more": 1}, ["expected an object with name, seed, requests"]),
    ],
)  # fmt: skip
def test_files_that_are_no_workload(tmp_path: Path, change: dict[str, Any], messages: list[str]) -> None:
    data = {"name": "day", "seed": 7, "requests": [{"prompt": 5, "output": 3}]} | change
    with pytest.raises(UsageError) as caught:
        read_workload(written(tmp_path, data))
    for message in messages:
        assert message in str(caught.value)


def test_prompts_are_those_of_the_seed() -> None:
    prompts = Workload("day", 7, ((5, 1), (3, 1))).prompts(201_088)
    generator = torch.Generator().manual_seed(7)
    assert prompts == [torch.randint(10, 200_000, (size,), generator=generator).tolist() for size in (5, 3)]
    small = Workload("day", 7, ((50, 1),)).prompts(12)
    assert set(small[0]) == {10, 11}


def test_requests_that_are_too_long() -> None:
    runner, _ = hashing_runner(context=40)
    check_fits(Workload("day", 7, ((30, 11),)), runner.slots)  # the last token is never appended
    with pytest.raises(UsageError, match=r"longer than the context of 40(?s:.*)request 1: 30 and 12 tokens"):
        check_fits(Workload("day", 7, ((1, 1), (30, 12))), runner.slots)


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by a second with each look at it: at the start, for each token, and at the end."""
    runner, _ = hashing_runner(slots=2, chunks=(64,))
    ticks = count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    report = serve(runner, Workload("day", SEED, ((5, 3), (2, 2), (4, 1))), Progress())
    assert (report.requests, report.prompt_tokens, report.output_tokens) == (3, 11, 6)
    assert report.output_tok_s == pytest.approx(6 / report.seconds)
    assert 0 < report.first_token_s.p50 <= report.first_token_s.p99 < report.seconds
    assert 1 <= report.between_tokens_s.p50 <= report.between_tokens_s.p99
    # Two sequences were held at once, of 2 * 2 * 32 float32 numbers a position in each of four layers.
    each = 4 * 4 * 2 * 2 * 32
    assert report.kv_cache_bytes % each == 0 and 7 * each <= report.kv_cache_bytes <= 12 * each
    assert runner.generate([1], 2, stop_tokens=()).finish == "length"  # the runner was given back


def test_a_request_that_fails() -> None:
    runner, _ = hashing_runner(slots=2, chunks=(64,))
    with pytest.raises(RunError, match="this prompt fails"):
        serve(runner, Workload("day", SEED, ((40, 1),) * 9), Progress())


def test_spread() -> None:
    assert Spread.of([float(number) for number in range(100, 0, -1)]) == Spread(51.0, 100.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0)
    assert Spread.of([]) == Spread(0.0, 0.0)
