"""The API keys that an operator gives to a server."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..errors import UsageError, raise_all

KEY_VARIABLE = "GPTOSS_EXPORT_API_KEY"


def api_keys(given: Iterable[tuple[str, str]] = ()) -> tuple[str, ...]:
    """Some keys, each after the place that it comes from, and the one of the environment variable, if it is set.

    Raises UsageError with the places of those that no client can send. An empty key is one of them: an empty variable
    would look like a server that asks for a key.
    """
    keys = list(given)
    if (key := os.environ.get(KEY_VARIABLE)) is not None:
        keys.append((KEY_VARIABLE, key))
    wrong = [
        f"{place}: expected printable characters of ASCII without spaces"
        for place, key in keys
        if not key or not key.isascii() or not key.isprintable() or " " in key
    ]
    raise_all(UsageError, "API keys cannot be used", wrong)
    return tuple(key for _, key in keys)
