"""`verify` of artifacts whose experts have other formats than MXFP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eager_verify import FEW, verified

from artifacts import TWO_LAYERS, compile_artifact
from gptoss_export import verify
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.errors import UsageError

FORMATS = [("hf", "bf16"), ("original", "bf16"), ("hf-bf16", "bf16"), ("hf-separate-nf4", "nf4")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("layout", "experts"), FORMATS)
def test_the_same_as_transformers(
    checkpoints: dict[str, Path], tmp_path: Path, layout: str, experts: str, dtype: str
) -> None:
    report = verified(tmp_path / "a", checkpoints[layout], FEW, dtype, experts=experts)
    assert report.passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_values_of_the_codes_fail(checkpoints: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    def other_table(model: Any) -> None:
        for layer in model.model.layers:
            layer.mlp.experts.down_proj_quant_map.mul_(1.1)

    assert not verified(tmp_path / "a", checkpoints["hf-separate-nf4"], FEW, dtype, other_table).passed


def test_a_compiled_artifact_in_nf4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    folder = tmp_path / "checkpoint"
    write_synthetic(folder, TWO_LAYERS, LAYOUTS["hf-separate-nf4"], 5, torch.device("cpu"))
    sizes: dict[str, Any] = {"max_batch": 1, "widths": (1,), "max_context": 128, "prefill_chunks": (16,)}
    artifact = compile_artifact(folder, tmp_path / "artifact", **sizes)
    report = verify(artifact, folder)
    assert report.passed
    mxfp4 = tmp_path / "mxfp4"
    write_synthetic(mxfp4, TWO_LAYERS, LAYOUTS["hf"], 5, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"experts in NF4: those of .* are MXFP4"):
        verify(artifact, mxfp4)
