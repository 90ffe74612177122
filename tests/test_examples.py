"""The examples run as their docstrings say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("build_and_run.py", ["{checkpoint}", "{artifact}"], "greedy "),
        ("stream.py", ["{artifact}", "Hello"], "(-"),
        ("score.py", ["{artifact}", "Hello, world"], "perplexity"),
    ],
)
def test_example(artifact, checkpoints, name, arguments, expected):
    names = {"artifact": artifact, "checkpoint": checkpoints["hf"]}
    command = [sys.executable, EXAMPLES / name, *(argument.format(**names) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"build_and_run.py", "stream.py", "score.py"}
