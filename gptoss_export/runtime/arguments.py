"""Checks what a caller gives to a runner: numbers of any library become Python's, and what is none is a RunError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import RunError
from ..values import shown, whole_number
from .sampling_params import SamplingParams


def integer(name: str, value: object) -> int:
    """A whole number of Python, numpy or torch as Python's. Raises RunError for others, and for true and false."""
    if (number := whole_number(value)) is None:
        raise RunError(f"{name}: found {shown(value)}, expected a whole number")
    return number


def token_ids(name: str, tokens: Any, vocab_size: int) -> list[int]:
    """Token ids, of a sequence, an array or a tensor, as Python's integers.

    Raises RunError for what is no sequence of whole numbers, and for one outside of the vocabulary.
    """
    if type(tokens).__module__.partition(".")[0] in ("numpy", "torch"):
        tokens = tokens.tolist()
    if not isinstance(tokens, Iterable) or isinstance(tokens, str | bytes):
        raise RunError(f"{name}s: expected whole numbers, found {shown(tokens)}")
    ids = []
    for token in tokens:
        if (number := whole_number(token)) is None:
            raise RunError(f"{name}s: expected whole numbers, found {shown(token)}")
        ids.append(number)
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise RunError(f"{name} {shown(wrong[0])}: expected ids of 0 to {vocab_size - 1}, the model's vocabulary")
    return ids


def sequence(name: str, values: Any, of: str) -> list[Any]:
    """The items of an iterable. `of` says in the error what they are. Raises RunError for what is no iterable."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise RunError(f"{name}: found {shown(values)}, expected a sequence of {of}")
    try:
        return list(values)
    except TypeError as error:  # a tensor without dimensions
        raise RunError(f"{name}: expected a sequence of {of} ({error})") from None


def sampling_params(sampling: Sequence[SamplingParams] | None, prompts: int) -> list[SamplingParams]:
    """The sampling parameters of each prompt. None: the most likely tokens. Raises RunError for other values."""
    if sampling is None:
        return [SamplingParams()] * prompts
    params = sequence("sampling", sampling, "SamplingParams, one for each prompt")
    if len(params) != prompts:
        raise RunError(f"sampling: {len(params)} parameters for {prompts} prompts, expected one each")
    for param in params:
        if not isinstance(param, SamplingParams):
            raise RunError(f"sampling: found {shown(param)}, expected SamplingParams")
    return params
