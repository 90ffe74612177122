"""Reads a JSON file that somebody else wrote: settings of a checkpoint, a manifest, tuned configs.

It is stricter than Python's json module. What has two meanings, or a meaning in Python alone, is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import git_lfs
from .errors import GptOssExportError
from .regular_file import NotRegularError, read_start
from .values import shown

LARGEST = 64 << 20  # bytes; the manifest of a 120b has less than one MB
DEEPEST = 64  # objects and lists inside of each other
LONGEST_NUMBER = 400  # characters; a float64 written out has at most 310 digits before the point


def read_object(
    path: Path,
    error: type[GptOssExportError],
    *,
    subject: str = "",
    missing: str = "not found",
    advice: str = "",
    check: Callable[[bytes], object] | None = None,
) -> dict[str, Any]:
    """The object that the file at `path` holds: UTF-8 whatever the locale, no key twice, finite numbers.

    error    the class of the error to raise for everything that is wrong, a file that cannot be read included
    subject  what the error calls the file; empty: its path
    missing  what the error says if there is no file
    advice   what the error tells the user to do about a file that is there
    check    called with the bytes of the file before they are parsed; what it raises is passed on
    """
    subject = subject or str(path)
    try:
        data = _read(path)
    except FileNotFoundError:
        raise error(f"{subject}: {missing}") from None
    except OSError as problem:
        raise error(f"{subject}: cannot be read ({problem.strerror or problem}){_end(advice)}") from None
    except (_WrongError, NotRegularError) as problem:
        raise error(f"{subject}: {problem}{_end(advice)}") from None
    if check is not None:
        check(data)
    return parse_object(data, error, subject=subject, advice=advice)


def parse_object(data: bytes, error: type[GptOssExportError], *, subject: str, advice: str = "") -> dict[str, Any]:
    """As `read_object`, of bytes that were read already."""
    end = _end(advice)
    try:
        if git_lfs.is_pointer(data):
            end = _end(git_lfs.ADVICE)
            raise _WrongError("found a pointer of Git LFS, expected the file itself")
        value = _parse(data)
    except _WrongError as problem:
        raise error(f"{subject}: {problem}{end}") from None
    except UnicodeDecodeError as problem:
        found = f"byte 0x{problem.object[problem.start]:02x} at offset {problem.start}"
        raise error(f"{subject}: cannot be read as JSON ({found} is not UTF-8); expected UTF-8{end}") from None
    except RecursionError:
        raise error(f"{subject}: {_TOO_DEEP}{end}") from None
    except ValueError as problem:  # JSONDecodeError, and what the hooks of _parse raise
        raise error(f"{subject}: cannot be read as JSON ({problem}){end}") from None
    if not isinstance(value, dict):
        raise error(f"{subject}: holds {_kind(value)}, expected an object{end}")
    return value


def members(value: Any, *names: str) -> list[Any]:
    """The values of an object that has these keys and no others, in this order. Raises ValueError."""
    if not isinstance(value, dict) or value.keys() != set(names):
        found = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"found {shown(found)}, expected an object with {', '.join(names)}")
    return [value[name] for name in names]


def elements(value: Any) -> tuple[Any, ...]:
    """The elements of a list. Raises ValueError for everything else, such as text, which Python takes for one."""
    if not isinstance(value, list):
        raise ValueError(f"found {shown(value)}, expected a list")
    return tuple(value)


def _end(advice: str) -> str:
    return f"; {advice}" if advice else ""


class _WrongError(Exception):
    """What is wrong with a file, as a complete sentence."""


_TOO_DEEP = f"cannot be read as JSON (found more than {DEEPEST} objects and lists inside of each other)"


def _read(path: Path) -> bytes:
    data = read_start(path, LARGEST + 1)
    if len(data) > LARGEST:
        raise _WrongError(f"found more than {LARGEST >> 20} MiB, expected a smaller file of JSON")
    return data


def _parse(data: bytes) -> Any:
    text = data.decode("utf-8")
    value = json.loads(
        text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
    )
    level = [value]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
        if not level:
            break
    else:
        raise _WrongError(_TOO_DEEP)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("found half of a surrogate pair (\\ud800 to \\udfff), expected a character") from None
    return value


def _children(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"found the key {key!r} twice in one object, expected it once")
        found[key] = value
    return found


def _constant(text: str) -> Any:
    raise ValueError(f"found {text}, expected a finite number")


def _integer(text: str) -> int:
    return int(_digits(text))


def _float(text: str) -> float:
    value = float(_digits(text))
    if not math.isfinite(value):
        raise ValueError(f"found {text}, expected a number that float64 can hold")
    return value


def _digits(text: str) -> str:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"found a number of {len(text)} characters ({text[:8]}...), expected at most {LONGEST_NUMBER}")
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "a list", str: "a string", bool: "true or false"}.get(type(value), "a number")
