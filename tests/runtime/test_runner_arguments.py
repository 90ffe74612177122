"""What callers give to a runner: numbers of Python, numpy and torch mean the same, everything else is one RunError."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runner_checks import DRAWN, runner_of

from gptoss_export import Runner, SamplingParams
from gptoss_export.errors import RunError

STOP = DRAWN[1]


@pytest.mark.parametrize(
    "stops",
    [
        torch.tensor([STOP, 3], dtype=torch.int32),
        np.array([STOP, 3], dtype=np.uint16),
        [np.int64(STOP)],
        (torch.tensor(STOP),),
        frozenset({STOP}),
        iter([STOP]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stop_tokens_of_every_library(uncompiled: Path, stops: Any) -> None:
    result = runner_of(uncompiled).generate([1], 4, stop_tokens=stops)
    assert (result.tokens, result.finish) == (DRAWN[:2], "stop")


@pytest.mark.parametrize(
    "prompt", [[1, 2], (np.int8(1), torch.tensor(2)), torch.tensor([1, 2]), np.array([1, 2]), range(1, 3)], ids=str
)
def test_prompts_of_every_library(uncompiled: Path, prompt: Any) -> None:
    result = runner_of(uncompiled).generate(prompt, np.int64(2), stop_tokens=())
    assert result.prompt_tokens == [1, 2] and {type(token) for token in result.prompt_tokens} == {int}
    assert result.tokens == DRAWN[:2]


NO_TOKENS: list[Any] = [
    True,
    5,
    1.0,
    "12",
    [True],
    [np.True_],
    [torch.tensor(True)],
    torch.tensor([True, False]),
    np.array([True]),
    [1.0],
    np.array([1.0]),
    torch.tensor([1.5]),
    torch.tensor(3),
    [[1]],
    torch.tensor([[1]]),
    [None],
]


@pytest.mark.parametrize("tokens", NO_TOKENS, ids=str)
def test_what_is_no_token_is_refused_everywhere(uncompiled: Path, tokens: Any) -> None:
    runner = runner_of(uncompiled)
    for call in (
        lambda: runner.generate([1], 4, stop_tokens=tokens),
        lambda: runner.stream([1], 4, stop_tokens=tokens),
        lambda: runner.generate(tokens),
        lambda: runner.generate_batch([[1], tokens]),
        lambda: runner.prefill(tokens),
        lambda: runner.prefill_logits(tokens),
        lambda: runner.score(tokens),
    ):
        with pytest.raises(RunError, match="tokens: expected whole numbers"):
            call()
    with pytest.raises(RunError, match=r"(tokens: (found|expected)|decode: found)"):
        runner.decode(tokens)
    assert [runner.length(slot) for slot in range(3)] == [0, 0, 0]


def one_by_one() -> Iterator[list[int]]:
    yield from ([1], [2])


def test_prompts_may_come_one_by_one(uncompiled: Path) -> None:
    assert len(runner_of(uncompiled).generate_batch(one_by_one(), 2)) == 2  # type: ignore[arg-type]


WRONG_CALLS: list[tuple[Callable[[Runner, Any], object], str, list[Any]]] = [
    (lambda r, v: r.generate([1], v), "max_new_tokens: found ", [True, 1.5, math.nan, math.inf, "8", None, [1], 2.0]),
    (lambda r, v: r.generate([1], v), "max_new_tokens: found .*, expected 1 or more", [0, -1, np.int64(0)]),
    (lambda r, v: r.prefill([1], v), "slot: found .*, expected a whole number", [True, 1.0, "0", None, [0]]),
    (lambda r, v: r.score([1, 2], v), "slot: found .*, expected a whole number", [False, 0.5]),
    (lambda r, v: r.prefill_logits([1], v), "slot: found .*, expected a whole number", [False, 0.5]),
    (lambda r, v: r.length(v), "slot: found .*, expected a whole number", [True, "1", torch.tensor(True)]),
    (lambda r, v: r.reset(v), "slot: found .*, expected a whole number", [False, "1", 0.0]),
    (lambda r, v: r.truncate(v), "length: found .*, expected a whole number", [False, "1", 0.0, None]),
    (lambda r, v: r.generate_batch(v), "prompts: (found|expected)", [5, None, "text", b"text", torch.tensor(4)]),
    (lambda r, v: r.generate([1], sampling=v), "sampling: found .*, expected SamplingParams", [{"top_k": 1}, 0.5, "x"]),
    (lambda r, v: r.stream([1], sampling=v), "sampling: found .*, expected SamplingParams", [{"top_k": 1}, 0.5]),
    (
        lambda r, v: r.generate_batch([[1]], sampling=v),
        "sampling: found .*, expected a sequence of SamplingParams, one for each prompt",
        [SamplingParams(), 5, "x"],
    ),
]


@pytest.mark.parametrize(("call", "message", "values"), WRONG_CALLS, ids=range(len(WRONG_CALLS)))
def test_arguments_of_a_wrong_type(
    uncompiled: Path, call: Callable[[Runner, Any], object], message: str, values: list[Any]
) -> None:
    runner = runner_of(uncompiled)
    for value in values:
        with pytest.raises(RunError, match=message):
            call(runner, value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": -0.0}, {"temperature": 0.0}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": Fraction(1, 4)}, {"temperature": 0.25}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"top_p": Fraction(1, 2)}, {"top_p": 0.5}),
        ({"top_k": np.uint8(3)}, {"top_k": 3}),
        ({"seed": np.int64(-5)}, {"seed": -5}),
    ],
    ids=str,
)
def test_sampling_parameters_become_numbers_of_python(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found, same = SamplingParams(**given), SamplingParams(**expected)
    assert found == same and hash(found) == hash(same)
    for name, value in expected.items():
        assert type(getattr(found, name)) is type(value)
        assert math.copysign(1, getattr(found, name)) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"temperature": math.nan}, "temperature: found nan"),
        ({"temperature": math.inf}, "temperature: found inf"),
        ({"temperature": 10**400}, "temperature: found 1000"),
        ({"temperature": 10**5000}, "temperature: found a number of thousands of digits"),
        ({"temperature": Decimal(1)}, "temperature: found Decimal('1')"),
        ({"temperature": torch.tensor(1.0)}, "temperature: found tensor(1.)"),
        ({"temperature": np.True_}, "temperature: found np.True_"),
        ({"temperature": -1e-45}, "temperature: found -1e-45"),
        ({"top_k": 10**5000}, "top_k: found a number of thousands of digits"),
        ({"top_k": np.True_}, "top_k: found np.True_"),
        ({"top_k": -1}, "top_k: found -1"),
        ({"top_p": Fraction(1, 10**400)}, "top_p: found Fraction(1, 1000"),
        ({"top_p": math.nan}, "top_p: found nan"),
        ({"top_p": True}, "top_p: found True"),
        ({"seed": 2**63}, "seed: found 9223372036854775808"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_sampling_parameters_that_are_refused(wrong: dict[str, Any], shown: str) -> None:
    with pytest.raises(RunError) as caught:
        SamplingParams(**wrong)
    assert shown in str(caught.value) and len(str(caught.value)) < 250
