"""`gptoss-export tune`, and how its file reaches a build."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_helpers import invoke
from tuning_samples import SPACE, entry, tuned

from gptoss_export.kernels.tuned_configs import read_tuned_configs, write_tuned_configs
from gptoss_export.model.config import ModelConfig
from gptoss_export.tuning.timing import Refused
from gptoss_export.tuning.tune import Tuned

Checkpoints = dict[str, Path]
Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_tune_needs_a_gpu(cli: Cli, checkpoints: Checkpoints, tmp_path: Path) -> None:
    code, _, err = cli("tune", checkpoints["hf"], "-o", tmp_path / "t.json")
    assert code == 2 and "torch finds no CUDA GPU here" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-batch", 0, "--prefill-chunk", 0), "--max-batch 0: expected 1 or more"),
        (("--prefill-chunk", 999, "--max-context", 64), "--prefill-chunk 999: expected at most"),
        (("--max-context", 10**9), "--max-context 1000000000: expected at most"),
    ],
)
def test_tune_checks_its_options(
    checkpoints: Checkpoints, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    done = invoke("tune", checkpoints["hf"], "-o", tmp_path / "t.json", *options)
    assert done.exit_code == 2 and message in done.stderr


def test_tune_writes_and_reports_what_was_found(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """As a table or as JSON, with a kernel whose own guess was refused. Keeps what the file holds of the same GPU."""
    bad = Refused(SPACE.default, "19 GB")
    found = [Tuned(SPACE, entry(), 9, []), Tuned(dataclasses.replace(SPACE, name="large"), None, 1, [bad])]
    monkeypatch.setattr("gptoss_export.targets.gpu.current_gpu_arch", lambda: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("gptoss_export.tuning.tune.tune", lambda *arguments: iter(found))
    arguments = ["tune", checkpoints["hf"], "-o", tmp_path / "t.json"]
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0 and "warning: large (tokens 4" in done.stderr and "19 GB" in done.stderr
    first, second = json.loads(done.stdout)["results"]
    assert first == json.loads(json.dumps(vars(entry()))) | {"tried": 9, "refused": []}
    assert second["config"] is None and second["refused"] == [{"config": str(bad), "wrong_results": False}]
    found[:] = [Tuned(SPACE, entry(8), 9, [])]
    done = invoke(*arguments)
    assert done.exit_code == 0 and "100.0%" in done.stdout
    assert {kept.shape["tokens"] for kept in read_tuned_configs(tmp_path / "t.json").entries} == {4, 8}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    done = invoke(*arguments)
    assert done.exit_code == 2 and "holds measurements of NVIDIA H200" in done.stderr and "NVIDIA A100" in done.stderr


@pytest.mark.parametrize(("option", "form"), [("mxfp4", "mxfp4"), ("nf4", "nf4-32"), ("bf16", "bf16")])
def test_tune_for_a_format_of_the_experts(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints, tmp_path: Path, option: str, form: str
) -> None:
    asked: list[str] = []

    def tune(config: ModelConfig, *_: object) -> Iterator[Tuned]:
        asked.append(config.experts_format)
        return iter(())

    monkeypatch.setattr("gptoss_export.targets.gpu.current_gpu_arch", lambda: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("gptoss_export.tuning.tune.tune", tune)
    done = invoke("tune", checkpoints["hf"], "-o", tmp_path / "t.json", "--experts", option)
    assert done.exit_code == 0 and asked == [form]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cpu"), "--tuned-configs: aoti for cpu has none of the project's kernels"),
        (("--device", "cuda", "--target", "onnx"), "--tuned-configs: onnx for cuda has none of the project's kernels"),
        (("--device", "cuda", "--arch", "sm_80"), "is for sm_90, expected one of sm_80"),
    ],
)
def test_tuned_configs_that_do_not_belong_to_a_build(
    checkpoints: Checkpoints, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    write_tuned_configs(tuned(), tmp_path / "t.json")
    done = invoke("build", checkpoints["hf"], "-o", tmp_path / "a", "--tuned-configs", tmp_path / "t.json", *options)
    if "cannot be built here" in done.stderr:
        pytest.skip(done.stderr)
    assert done.exit_code == 2 and message in done.stderr and not (tmp_path / "a").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
def test_tune_and_build_with_its_file(cli: Cli, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The manifest names the file, and the build with it is right. A second run keeps the entries of the first."""
    sizes = "--max-context", 256, "--prefill-chunk", 64
    path = tmp_path / "t.json"
    for name in "unembed", "experts_step":
        code, out, err = cli("tune", checkpoints["hf"], "-o", path, *sizes, "--only", name, "--json")
        assert code == 0, err
        assert all(
            result["tried"] > 5 and result["us"] <= result["default_us"] for result in json.loads(out)["results"]
        )
    measured = read_tuned_configs(path)
    assert {entry.name for entry in measured.entries} == {"unembed", "experts_step"}
    code, _, err = cli(
        "build", checkpoints["hf"], "-o", tmp_path / "a", "--device", "cuda", *sizes, "--tuned-configs", path
    )
    assert code == 0, err
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["provenance"]["tuned_configs"][measured.arch][0] == measured.label
    code, _, err = cli("verify", tmp_path / "a", "--checkpoint", checkpoints["hf"])
    assert code == 0, err
