"""A process that cannot import torch runs an artifact, and gives the bits of one that has torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import without_torch_calls

CALLS = Path(without_torch_calls.__file__)


def test_the_same_bits(artifact: Path, tmp_path: Path) -> None:
    expected = without_torch_calls.results(str(artifact))
    command = [sys.executable, CALLS, artifact, tmp_path / "found.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert set(found) == set(expected)
    assert [name for name, value in expected.items() if not np.array_equal(found[name], value)] == []
    assert expected["engine"].size == 7 * 12 and len(set(expected["drawn tokens"])) > 5


def test_importing_torch_fails_there() -> None:
    code = f"import sys; sys.path.insert(0, {str(CALLS.parent)!r}); import without_torch_calls as calls\n"
    code += "sys.meta_path.insert(0, calls.Refusing())\nimport torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "this process must not import torch" in done.stderr
