"""`verify` of artifacts with adapter slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eager_artifact import load_eager, write_eager

from gptoss_export import Runner, verify
from gptoss_export.artifact.programs import Sizes
from gptoss_export.errors import CheckpointError, UsageError
from gptoss_export.verification import verify as module

SIZES = Sizes((2,), 256, (32,), adapter_slots=1, adapter_rank=8)


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, oracles: Any) -> Path:
    """Artifacts of it are loaded without compiled code."""
    monkeypatch.setattr(module, "load", lambda folder, *_, **__: load_eager(folder, checkpoints["hf"]))
    return checkpoints["hf"]


@pytest.mark.parametrize("kind", ["both", None])
def test_an_adapter_in_a_slot(checkpoint: Path, adapters: dict[str, Path], tmp_path: Path, kind: str | None) -> None:
    """Experts in MXFP4 too, into which no adapter can be merged."""
    folder = write_eager(tmp_path / "artifact", checkpoint, SIZES, "float32")
    report = verify(folder, checkpoint, lengths=[33, 200], adapter=None if kind is None else adapters[kind])
    assert report.passed and all(row.all.max < 1e-4 for row in report.rows), report.rows


def test_in_bfloat16(checkpoint: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = write_eager(tmp_path / "artifact", checkpoint, SIZES, "bfloat16")
    assert verify(folder, checkpoint, lengths=[33, 200], adapter=adapters["both"]).passed


@pytest.mark.parametrize("other", ["attention", "experts", "some"])
def test_another_adapter_fails(
    checkpoint: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    folder, load = write_eager(tmp_path / "artifact", checkpoint, SIZES, "float32"), Runner.load_adapter
    monkeypatch.setattr(Runner, "load_adapter", lambda self, name, _: load(self, name, adapters[other]))
    assert not verify(folder, checkpoint, lengths=[40], adapter=adapters["both"]).passed


def test_what_is_refused(checkpoint: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = write_eager(tmp_path / "artifact", checkpoint, SIZES, "float32")
    with pytest.raises(UsageError, match=r"--oracle reference: takes no --adapter of an artifact with adapter slots"):
        verify(folder, checkpoint, "reference", adapter=adapters["both"])
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: not found"):
        verify(folder, checkpoint, adapter=tmp_path)
    plain = write_eager(tmp_path / "plain", checkpoint, Sizes((2,), 256, (32,)), "float32")
    with pytest.raises(UsageError, match="plain was built without an adapter, and without adapter slots"):
        verify(plain, checkpoint, adapter=adapters["both"])
    with pytest.raises(UsageError, match="plain was built without an adapter, and without adapter slots"):
        verify(folder, checkpoint, compare_with=plain, adapter=adapters["both"])
