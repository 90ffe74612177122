"""A prompt that is checked once and shared by requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_export.errors import RunError
from gptoss_export.runtime.checked_request import checked_requests
from gptoss_export.runtime.checked_tokens import CheckedTokens


def prompts(given: Any) -> list[Any]:
    """The prompts of the requests that are made of some, for a model of 10 tokens."""
    manifest: Any = SimpleNamespace(model=SimpleNamespace(vocab_size=10), stop_tokens=())
    slots: Any = SimpleNamespace(max_context=8, limit="a test")
    return [request.prompt for request in checked_requests(manifest, slots, given, 5, None, None)]


def test_it_is_taken_as_it_is() -> None:
    checked = CheckedTokens.of(range(5), 10)
    assert checked == (0, 1, 2, 3, 4) and checked.vocab_size == 10
    assert all(found is checked for found in prompts([checked, checked]))
    assert prompts([(1, 2)]) == [[1, 2]]


def test_it_is_checked() -> None:
    with pytest.raises(RunError, match="token 10: expected ids of 0 to 9"):
        CheckedTokens.of([1, 10], 10)
    with pytest.raises(RunError, match="tokens: expected whole numbers, found 'a'"):
        CheckedTokens.of(["a"], 10)


def test_one_of_another_model_is_checked_again() -> None:
    with pytest.raises(RunError, match="token 11: expected ids of 0 to 9"):
        prompts([CheckedTokens.of([11], 20)])


@pytest.mark.parametrize(("tokens", "named"), [([], "no tokens"), (range(9), "9 tokens exceed the context of 8")])
def test_it_has_to_fit(tokens: Any, named: str) -> None:
    with pytest.raises(RunError, match=named):
        prompts([CheckedTokens.of(tokens, 10)])
