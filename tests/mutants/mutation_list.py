"""The list of mutations: small faults, one of which at a time is put into a copy of the project.

The TOML files beside this one hold them, a file for each part of the project:

    wider = ["tests/..."]      what is run where the tests of a mutation do not notice it
    [[mutation]]
    name = "..."               unique
    breaks = "..."             what the fault does
    file = "gptoss_export/..."
    before = "..."             text that the file holds exactly once
    after = "..."              what replaces it
    tests = ["tests/...::..."] the tests that are the most likely to notice
    rebuild = true             build the tests' artifacts with the fault too; without it they are built by right code
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True)
class Mutation:
    """One fault; the fields are those of the TOML files, and `part` is the name of its file."""

    name: str
    breaks: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    wider: tuple[str, ...]
    rebuild: bool = False
    part: str = ""

    def __str__(self) -> str:
        return f"{self.part}/{self.name}"

    def apply(self, source: str) -> str:
        """The text of the file with the fault. Raises ValueError where it does not fit the file."""
        if (count := source.count(self.before)) != 1:
            raise ValueError(f"{self.name}: {self.file} holds the text {count} times, expected once: {self.before!r}")
        return source.replace(self.before, self.after)

    def problems(self, root: Path) -> list[str]:
        """What is wrong with it for the project in `root`."""
        source = root / self.file
        if not source.is_file():
            return [f"{self.name}: {self.file} is not there"]
        try:
            text = source.read_text(encoding="utf-8")
            if ast.dump(ast.parse(self.apply(text))) == _meaning(text):
                return [f"{self.name}: changes nothing"]
        except (ValueError, SyntaxError) as problem:
            return [f"{self.name}: {problem}" if isinstance(problem, SyntaxError) else str(problem)]
        found = [] if self.tests else [f"{self.name}: has no tests"]
        for test in (*self.tests, *self.wider):
            path, *names = test.partition("[")[0].split("::")
            if not (root / path).exists():
                found.append(f"{self.name}: {path} is not there")
            elif names and f"def {names[-1]}(" not in (root / path).read_text(encoding="utf-8"):
                found.append(f"{self.name}: {path} has no {names[-1]}")
        return found


@cache
def _meaning(text: str) -> str:
    """The program that a text is, whatever its layout and its comments."""
    return ast.dump(ast.parse(text))


def read_mutations() -> list[Mutation]:
    """All mutations, in the order of the files' names. Raises TypeError for an entry of other fields."""
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        wider = tuple(content["wider"])
        for entry in content["mutation"]:
            found.append(Mutation(**entry | {"tests": tuple(entry["tests"]), "wider": wider, "part": path.stem}))
    return found
