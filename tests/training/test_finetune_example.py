"""examples/finetune.py: the loss falls, the adapter is saved, and the artifact with it generates the text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/finetune.py"


def test_finetune(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "trainer").symlink_to(trained / "artifact")  # which the example would build
    command = [sys.executable, str(EXAMPLE), str(trained / "checkpoint"), str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    *steps, generated, expected = done.stdout.splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in steps]
    assert losses[0] > 5 and losses[-1] < 0.2
    assert generated.split()[1:] == expected.split()[1:]
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
