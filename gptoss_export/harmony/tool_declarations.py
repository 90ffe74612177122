"""The tools section of a prompt: functions as TypeScript-like declarations in a namespace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .messages import FUNCTIONS, FunctionTool
from .typescript import typescript


@dataclass(frozen=True)
class Namespace:
    """Tools of one kind. Without tools, it is a description of what to send to it."""

    name: str
    description: str
    tools: Sequence[FunctionTool]


def tools_section(namespaces: Iterable[Namespace]) -> str:
    """The section that declares the tools of namespaces, in the order of their names."""
    ordered = sorted(namespaces, key=lambda namespace: namespace.name.encode())
    return "\n\n".join(["# Tools", *map(_declaration, ordered)])


def functions_section(tools: Sequence[FunctionTool]) -> str:
    """The section that declares a developer's functions."""
    return tools_section([Namespace(FUNCTIONS, "", tools)])


def _declaration(namespace: Namespace) -> str:
    comment = "// " if namespace.tools else ""
    lines = [f"## {namespace.name}\n", *(f"{comment}{line}" for line in _lines(namespace.description))]
    if namespace.tools:
        lines.append(f"namespace {namespace.name} {{\n")
        for tool in namespace.tools:
            lines += [f"// {line}" for line in _lines(tool.description)]
            arguments = "" if tool.parameters is None else f"_: {typescript(tool.parameters)}"
            lines.append(f"type {tool.name} = ({arguments}) => any;\n")
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    """The lines of a text, which end with a line feed, or with a carriage return before it."""
    *ended, last = text.split("\n")
    return [line.removesuffix("\r") for line in ended] + ([last] if last else [])
