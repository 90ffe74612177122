"""Changes of JSON that know its structure, and changes of the file that holds it. All are plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ESC, RLO = "\x1b", "\u202e"
STRINGS = {
    "empty": "",
    "long": "x" * 100_000,
    "escape": f"{ESC}[31mred{ESC}]0;title\x07",
    "markup": "[bold]b[/b][/][link=http://a]x[/link]",
    "html": "<script>alert(1)</script><a href='http://a' onclick=x>&amp;",
    "up": "../../../stray",
    "absolute": "{root}/stray",
    "dots": "..",
    "dot": ".",
    "slash": "a/b",
    "nul": "a\0b",
    "lines": "a\nerror: b\r\nc",
    "unicode": "naïve 文字 🙂 е\u0301",
    "direction": f"a{RLO}b\u2066c",
    "format": "%s%n{0}{x}",
    "number": "1",
    "surrogate": None,
    "spaces": " \t ",
    "dash": "--help",
}
# JSON texts. They stand for themselves in a failing example by their names.
EXTREMES: dict[str, str] = {
    **{f"string {name}": json.dumps(text) if text is not None else '"\\ud800"' for name, text in STRINGS.items()},
    "null": "null",
    "true": "true",
    "false": "false",
    "0": "0",
    "1": "1",
    "2": "2",
    "-1": "-1",
    "-0.0": "-0.0",
    "0.5": "0.5",
    "1.0": "1.0",
    "1e2": "1e2",
    "1e-320": "1e-320",
    "1e-45": "1e-45",
    "1e308": "1e308",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "32767": "32767",
    "10**6": "1000000",
    "2**31": "2147483648",
    "2**31-1": "2147483647",
    "2**32": "4294967296",
    "2**53+1": "9007199254740993",
    "2**63-1": "9223372036854775807",
    "2**63": "9223372036854775808",
    "-2**63-1": "-9223372036854775809",
    "2**64": "18446744073709551616",
    "10**400": "1" + "0" * 400,
    "10**5000": "1" + "0" * 5000,
    "[]": "[]",
    "{}": "{}",
    "[null]": "[null]",
    "[[1]]": "[[1]]",
    '{"a": 1}': '{"a": 1}',
    "deep 70": "[" * 70 + "]" * 70,
    "deep 100000": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "wide": "[" + ",".join("1" * 50_000) + "]",
    "word": "undefined",
    "nothing": "",
}
KINDS = ("replace", "drop", "twice", "retype", "near", "rename", "copy", "swap", "add", "reverse")
RETYPED = ("string", "list", "object", "float", "bool")
NEAR = ("+1", "-1", "*2", "//2", "negative", "case", "space")
FILES = ("folder", "missing", "fifo", "device", "dangling link", "link to itself", "empty", "lfs pointer")
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


class Object(list[Any]):
    """Members: lists of key and value, so that a key can be there twice."""


class Array(list[Any]):
    """Elements."""


Node: TypeAlias = Object | Array | str  # a string is the text of a value without parts


@dataclass(frozen=True)
class Change:
    """One change of a document. path: for each level the index of a member or element."""

    kind: str
    path: tuple[int, ...]
    argument: str = ""
    other: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bytes:
    """A change of the bytes of a file: at, a position in thousandths of its size."""

    kind: str
    at: int = 0
    value: int = 0


@dataclass(frozen=True)
class Damage:
    """What happens to a file of JSON: changes of the document, then of its bytes, then of the file."""

    changes: tuple[Change, ...] = ()
    text: tuple[Bytes, ...] = ()
    file: str = ""


def damages(document: Any, files: bool = True) -> SearchStrategy[Damage]:
    """Damages of a file that holds `document`."""
    tree = parse(document)
    change = st.builds(
        Change,
        kind=st.sampled_from(KINDS),
        path=paths(tree),
        argument=st.sampled_from(list(EXTREMES)),
        other=paths(tree),
    )
    one, more = st.tuples(change), st.lists(change, min_size=2, max_size=3).map(tuple)
    choices = [st.builds(Damage, changes=st.one_of(one, one, one, more))] * 9
    choices.append(st.builds(Damage, text=byte_changes()))
    if files:
        choices.append(st.builds(Damage, file=st.sampled_from(FILES)))
    return st.one_of(*choices)


def byte_changes() -> SearchStrategy[tuple[Bytes, ...]]:
    """One or two changes of bytes."""
    kinds = st.sampled_from(("flip", "insert", "delete", "cut", "bom", "utf-16", "tail"))
    return st.lists(
        st.builds(Bytes, kind=kinds, at=st.integers(0, 999), value=st.integers(0, 255)), min_size=1, max_size=2
    ).map(tuple)


@st.composite
def paths(draw: st.DrawFn, tree: Node) -> tuple[int, ...]:
    """The path of a node that is not the root."""
    found: list[int] = []
    while isinstance(tree, Object | Array) and tree and not (found and draw(st.integers(0, 3)) == 3):
        found.append(draw(st.integers(0, len(tree) - 1)))
        tree = tree[found[-1]][1] if isinstance(tree, Object) else tree[found[-1]]
    return tuple(found)


def parse(value: Any) -> Node:
    """The tree of a value of JSON."""
    if isinstance(value, dict):
        return Object([json.dumps(key), parse(item)] for key, item in value.items())
    if isinstance(value, list | tuple):
        return Array(parse(item) for item in value)
    return json.dumps(value)


def text_of(tree: Node) -> str:
    if isinstance(tree, Object):
        return "{" + ",".join(f"{key}:{text_of(item)}" for key, item in tree) + "}"
    if isinstance(tree, Array):
        return "[" + ",".join(map(text_of, tree)) + "]"
    return tree


def damaged(document: Any, damage: Damage, root: Path) -> bytes:
    """The bytes of the damaged file. `root` stands where a string asks for an absolute path."""
    tree = Array([parse(document)])  # so that the document itself has a place
    for change in damage.changes:
        apply(tree, change)
    data = text_of(tree[0]).replace("{root}", str(root)).encode("utf-8", "surrogatepass") if tree else b""
    for item in damage.text:
        data = change_bytes(data, item)
    return data


def write_damaged(path: Path, document: Any, damage: Damage, root: Path) -> None:
    """Put the damaged file, or something else, in the place of `path`."""
    path.unlink(missing_ok=True)  # it may be a link to a file that others read
    if damage.file:
        replace_file(path, damage.file)
    else:
        path.write_bytes(damaged(document, damage, root))


def replace_file(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling link":
        path.symlink_to("nothing")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind in ("empty", "lfs pointer"):
        path.write_bytes(_POINTER if kind == "lfs pointer" else b"")


def change_bytes(data: bytes, change: Bytes) -> bytes:
    at = len(data) * change.at // 1000
    if change.kind == "flip":
        return data[:at] + bytes([data[at] ^ (change.value or 1)]) + data[at + 1 :] if data else data
    if change.kind == "insert":
        return data[:at] + bytes([change.value]) * 4 + data[at:]
    if change.kind == "delete":
        return data[:at] + data[at + 1 + change.value :]
    if change.kind == "cut":
        return data[:at]
    if change.kind == "bom":
        return b"\xef\xbb\xbf" + data
    if change.kind == "utf-16":
        return data.decode("utf-8", "replace").encode("utf-16")
    return data + bytes([change.value]) * 3


def apply(tree: Array, change: Change) -> None:
    """Change the document that is the only element of `tree`."""
    holder, index = _find(tree, (0, *change.path))
    if not holder:
        return
    other, other_index = _find(tree, (0, *change.other))
    if change.kind == "drop":
        del holder[index]
    elif change.kind == "twice":
        holder.insert(index, holder[index])
    elif change.kind == "reverse":
        holder.reverse()
    elif change.kind == "rename" and isinstance(holder, Object):
        holder[index] = [_string(change.argument), holder[index][1]]
    elif change.kind == "add" and isinstance(holder, Object):
        holder.insert(index, [_string(change.argument), "1"])
    elif change.kind == "swap" and other:
        mine, theirs = _value(holder, index), _value(other, other_index)
        _set(other, other_index, _copied(mine))
        _set(holder, index, _copied(theirs))
    elif change.kind == "copy" and other:
        _set(holder, index, _copied(_value(other, other_index)))
    elif change.kind == "retype":
        _set(holder, index, _retyped(_value(holder, index), change.argument))
    elif change.kind == "near":
        _set(holder, index, _near(_value(holder, index), change.argument))
    else:
        _set(holder, index, EXTREMES[change.argument])


def _find(tree: Node, path: tuple[int, ...]) -> tuple[Any, int]:
    """The container that holds the node at `path`, and its index there, as far as the path goes."""
    holder: Any = None
    index = 0
    for step in path:
        if not isinstance(tree, Object | Array) or not tree:
            break
        holder, index = tree, step % len(tree)
        tree = _value(holder, index)
    return holder, index


def _value(holder: Any, index: int) -> Node:
    return holder[index][1] if isinstance(holder, Object) else holder[index]


def _set(holder: Any, index: int, value: Node) -> None:
    if isinstance(holder, Object):
        holder[index] = [holder[index][0], value]
    else:
        holder[index] = value


def _copied(tree: Node) -> Node:
    if isinstance(tree, Object):
        return Object([key, _copied(item)] for key, item in tree)
    return Array(map(_copied, tree)) if isinstance(tree, Array) else tree


def _string(name: str) -> str:
    text = EXTREMES[name]
    return text if text.startswith('"') else json.dumps(name)


def _pick(options: tuple[str, ...], name: str) -> str:
    return options[list(EXTREMES).index(name) % len(options)]


def _retyped(node: Node, name: str) -> Node:
    text = text_of(node)
    made: dict[str, Callable[[], Node]] = {
        "string": lambda: json.dumps(text if not text.startswith('"') else text[1:-1]),
        "list": lambda: Array([node]),
        "object": lambda: Object([['"value"', node]]),
        "float": lambda: f"{text}.0" if text.lstrip("-").isdigit() else text,
        "bool": lambda: "true" if text not in ("0", "false", "null", '""', "[]", "{}") else "false",
    }
    return made[_pick(RETYPED, name)]()


def _near(node: Node, name: str) -> Node:
    text, kind = text_of(node), _pick(NEAR, name)
    if text.lstrip("-").isdigit():
        value = int(text)
        numbers = {"+1": value + 1, "-1": value - 1, "*2": value * 2, "//2": value // 2, "negative": -value}
        return str(numbers.get(kind, value + 3))
    if text.startswith('"') and isinstance(node, str):
        return text.swapcase() if kind == "case" and "\\" not in text else json.dumps(json.loads(text) + " ")
    return node
