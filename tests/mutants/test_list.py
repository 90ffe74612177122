"""The list of mutations fits the project: nothing here runs one (`make mutants` does)."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation_list import ROOT, Mutation, read_mutations

MUTATIONS = read_mutations()


def test_every_mutation_fits() -> None:
    """Each text is found once in its file, the changed file parses, and the named tests exist."""
    assert [problem for mutation in MUTATIONS for problem in mutation.problems(ROOT)] == []


def test_names_are_unique_and_many() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names)) >= 120
    assert len({(mutation.file, mutation.before, mutation.after) for mutation in MUTATIONS}) == len(names)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"before": "not there"}, "holds the text 0 times, expected once"),
        ({"before": "x"}, "holds the text 2 times, expected once"),
        ({"file": "none.py"}, "none.py is not there"),
        ({"before": "x + 1", "after": "x  + 1"}, "changes nothing"),
        ({"before": "x + 1", "after": "("}, "never closed"),
        ({"tests": ()}, "has no tests"),
        ({"tests": ("test_y.py",)}, "test_y.py is not there"),
        ({"tests": ("test_x.py::test_b[1]",)}, "test_x.py has no test_b"),
    ],
)
def test_a_mutation_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    (tmp_path / "a.py").write_text("y = x\nz = x + 1\n")
    (tmp_path / "test_x.py").write_text("def test_a(): ...\n")
    right = {
        "name": "m",
        "breaks": "",
        "file": "a.py",
        "before": "x + 1",
        "after": "x",
        "tests": ("test_x.py::test_a",),
        "wider": (),
    }
    assert Mutation(**right).problems(tmp_path) == []  # type: ignore[arg-type]
    (found,) = Mutation(**right | change).problems(tmp_path)  # type: ignore[arg-type]
    assert problem in found
