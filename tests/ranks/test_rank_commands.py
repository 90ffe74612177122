"""The commands with an artifact of two ranks: by themselves, and under torchrun."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.artifact.programs import CHOICES
from gptoss_export.errors import ArtifactError, UsageError
from gptoss_export.targets import gpu

Cli = Callable[..., tuple[int, str, str]]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def test_run(of_two: Path, cli: Cli) -> None:
    code, out, err = cli("run", of_two / "artifact", "--tokens", "1,2,3", "--max-new-tokens", 5)
    assert code == 0, err
    assert out.strip()


def test_verify(of_two: Path, cli: Cli) -> None:
    code, out, err = cli(
        "verify", of_two / "artifact", "--checkpoint", of_two / "checkpoint", "--lengths", "1,70,130", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["passed"]


def test_bench(of_two: Path, cli: Cli) -> None:
    code, out, err = cli("bench", of_two / "artifact", "--context", "100", "--json")
    assert code == 0, err
    assert json.loads(out)


def test_inspect_says_how_many_ranks(of_two: Path, cli: Cli) -> None:
    code, out, _ = cli("inspect", of_two / "artifact")
    assert code == 0 and re.search(r"ranks\W+2", out)
    assert "decode_2@0" in out and "decode_2@1" in out


def test_what_is_the_same_for_all_ranks_is_compiled_once(of_two: Path) -> None:
    """Their code is the same to the last byte, and so is its name, which Inductor chooses by what it compiled."""
    found = []
    for package in sorted((of_two / "artifact").glob("*.pt2")):
        with zipfile.ZipFile(package) as held:
            libraries = [name for name in held.namelist() if name.endswith(".so")]
            found.append({(Path(name).parent.name, Path(name).name): held.read(name) for name in libraries})
    first, second = found
    same = {name for name in first if first[name] == second.get(name)}
    assert {program for program, _ in same} == {program.name for program in CHOICES}
    assert {program for program, _ in first} == {program for program, _ in second}


def test_torchrun(of_two: Path, cli: Cli) -> None:
    command = ["-m", "gptoss_export", "run", str(of_two / "artifact"), "--tokens", "1,2,3", "--max-new-tokens", "5"]
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node", "2", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    _, alone, _ = cli("run", of_two / "artifact", "--tokens", "1,2,3", "--max-new-tokens", 5)
    assert done.stdout.strip() == alone.strip()


def test_torchrun_with_another_number_of_processes(of_two: Path) -> None:
    command = ["-m", "gptoss_export", "run", str(of_two / "artifact"), "--tokens", "1", "--max-new-tokens", "1"]
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node", "3", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "torchrun: found 3 processes, expected 2, the ranks of the artifact" in done.stderr


@pytest.mark.parametrize("target", ["tensorrt", "onnx"])
def test_targets_for_one_rank_only(target: str, of_two: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("build", of_two / "checkpoint", "-o", tmp_path / "x", "--target", target, "--tensor-parallel", 2)
    assert code == 2 and not (tmp_path / "x").exists()
    assert f"--tensor-parallel 2: target {target} compiles for one rank only" in err


@pytest.mark.parametrize("ranks", [0, 3, 16, -1])
def test_numbers_of_ranks(ranks: int, of_two: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--tensor-parallel {ranks}: expected 1, 2, 4 or 8"):
        build(of_two / "checkpoint", tmp_path / "x", BuildOptions("aoti", "cpu", tensor_parallel=ranks))


def test_experts_of_one_rank(of_two: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("build", of_two / "checkpoint", "-o", tmp_path / "x", "--device", "cpu", "--expert-parallel")
    assert code == 2 and not (tmp_path / "x").exists()
    assert "--expert-parallel: expected --tensor-parallel with 2, 4 or 8 ranks" in err


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["H200"], ["GPUs: found 1, expected 2, one for each rank of the artifact"]),
        (["H200", "H100"], ["GPUs: found H200, H100, expected 2 of a kind; name those to use in CUDA_VISIBLE_DEVICES"]),
        (["H200", "H200"], []),
    ],
)
def test_gpus_of_ranks(names: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "all_gpus", lambda: [SimpleNamespace(name=name) for name in names])
    assert gpu.rank_problems(2) == expected


def test_what_four_ranks_cannot_share(of_two: Path, tmp_path: Path) -> None:
    """Six heads over two key heads, three groups of columns: all that is wrong comes at once."""
    with pytest.raises(UsageError) as caught:
        build(of_two / "checkpoint", tmp_path / "x", BuildOptions("aoti", "cpu", tensor_parallel=4))
    assert "--tensor-parallel 4: num_key_value_heads: found 2, expected a multiple of 4" in str(caught.value)
    assert "--tensor-parallel 4: intermediate_size: found 96, expected 128 or more" in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_manifest_with_another_number_of_ranks(of_two: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = json.loads((of_two / "artifact" / "manifest.json").read_text())
    data["sizes"]["ranks"] = 4
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"sizes.ranks: 4 cannot share the model: num_key_value_heads: found 2"):
        load_manifest(tmp_path)
