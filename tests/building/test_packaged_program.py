"""Programs of a package are found by their whole names. torch 2.11 finds decode_16 for decode_1, if it may."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from aoti_packages import compile_package

from artifacts import TWO_LAYERS
from gptoss_export.artifact.programs import Unembed
from gptoss_export.compat.packaged_program import PackagedProgram
from gptoss_export.targets.aoti import cpu_isa


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The longer name comes last in it."""
    folder = tmp_path_factory.mktemp("names") / "package"
    arch = cpu_isa.current_arch()
    return compile_package(folder, "cpu", arch, torch.float32, (Unembed(1), Unembed(16)))


@pytest.mark.parametrize("rows", [1, 16])
def test_a_name_that_begins_another_one(package: Path, rows: int) -> None:
    program = PackagedProgram(package, package.name, Unembed(rows).name, torch.device("cpu"))
    config = TWO_LAYERS
    x, norm = torch.randn(rows, config.hidden_size), torch.ones(config.hidden_size)
    weight = torch.randn(config.vocab_size, config.hidden_size)
    logits, *_ = program.run([x, norm, weight])
    assert logits.shape == (rows, config.vocab_size)
