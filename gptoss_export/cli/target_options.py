"""The targets' own options as options of `build`, made from the options that each target declares.

A field `cpu_isa: Literal["a", "b"] | None` becomes `--cpu-isa [a|b]`, a bool becomes a flag. The help is the field's
metadata["help"], followed by the targets that have the option.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from ..errors import UsageError, raise_all
from ..targets import TARGETS, options_class

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Option:
    """A field of a target's options. Targets with the same option name, type and help share it."""

    name: str
    type: Any
    help: str

    @property
    def flag(self) -> str:
        return _flag(self.name)

    def parameters(self) -> dict[str, Any]:
        """The keyword arguments of click.option. The value is None where the option was not given."""
        kind = _without_none(self.type)
        if kind is bool:
            return {"is_flag": True, "default": None}
        if get_origin(kind) is Literal:
            return {"type": click.Choice(get_args(kind))}
        if kind in (int, float, str):
            return {"type": kind}
        raise TypeError(f"option {self.flag}: is of type {kind}, which no option of the command line has")


def add_target_options(command: _Function) -> _Function:
    """Decorate a command with the options of all targets."""
    for option, targets in reversed(_options().items()):
        owners = f"target {targets[0]}" if len(targets) == 1 else f"targets {', '.join(targets)}"
        command = click.option(option.flag, option.name, help=f"{option.help} ({owners})", **option.parameters())(
            command
        )
    return command


def chosen_target_options(target: str, values: Mapping[str, Any]) -> Any:
    """The options of `target` with the values that were given (not None); None where none was given.

    Raises UsageError for a value of another target's option.
    """
    cls = options_class(target)
    own = {field.name for field in dataclasses.fields(cls)}
    given = {name: value for name, value in values.items() if value is not None}
    owners = {option.name: ", ".join(targets) for option, targets in _options().items()}
    problems = [
        f"{_flag(name)}: is an option of target {owners[name]}, found --target {target}; leave it out"
        for name in given
        if name not in own
    ]
    raise_all(UsageError, "options of another target", problems)
    return cls(**given) if given else None


def _options() -> dict[_Option, list[str]]:
    """The options of all targets, and the targets that have each. Raises TypeError where two targets disagree."""
    found: dict[_Option, list[str]] = {}
    for target in TARGETS:
        for option in _fields(options_class(target)):
            found.setdefault(option, []).append(target)
    names = [option.name for option in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"targets declare different options of one name: {', '.join(sorted(twice))}")
    return found


def _fields(cls: type) -> Iterator[_Option]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield _Option(field.name, hints[field.name], field.metadata["help"])


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else hint


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
