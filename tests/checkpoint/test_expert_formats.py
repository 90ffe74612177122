"""The formats that the experts of a checkpoint can have in an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_values import assert_equal, read_parameters, unpacked
from test_people_checkpoints import EXPERTS, Tensors, in_nf4, rewritten

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import CheckpointError, UsageError
from gptoss_export.model.parameters import INV_FREQ, parameters

CPU = torch.device("cpu")
FORMATS = [
    (name, experts)
    for name, layout in LAYOUTS.items()
    for experts in ("mxfp4", "bf16", *(["nf4"] if layout.experts == "nf4" else []))
]


@pytest.mark.parametrize(("layout", "experts"), FORMATS)
def test_every_format_holds_the_same_model(checkpoints: dict[str, Path], layout: str, experts: str) -> None:
    """What is written holds MXFP4's values, which each of the formats holds exactly."""
    assert_equal(unpacked(checkpoints[layout], experts), unpacked(checkpoints["hf"]))
    opened = open_checkpoint(checkpoints[layout], experts=experts)
    assert opened.config.expert_format.option == experts
    found = {name: (tuple(value.shape), value.dtype) for name, value in read_parameters(opened).items()}
    assert found == {
        item.name: (item.shape, getattr(torch, item.dtype))
        for item in parameters(opened.config, "bfloat16")
        if item.name != INV_FREQ
    }


@pytest.mark.parametrize(("layout", "experts"), [("hf", "bf16"), ("hf-bf16", "bf16"), ("hf-separate-nf4", "nf4")])
def test_transformers_gets_these_experts(checkpoints: dict[str, Path], layout: str, experts: str) -> None:
    opened = open_checkpoint(checkpoints[layout], experts=experts)
    model = opened.transformers_model(torch.float32, CPU)
    for name, value in unpacked(checkpoints[layout], experts).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            assert torch.equal(model.get_parameter(name).data, value.mT.float()), name


def test_what_is_used_unless_another_format_is_asked_for(checkpoints: dict[str, Path]) -> None:
    found = {name: open_checkpoint(folder).config.experts_format for name, folder in checkpoints.items()}
    assert found == dict.fromkeys(LAYOUTS, "mxfp4") | {"hf-separate-nf4": "nf4-32"}


def test_nf4_of_another_format_is_refused(checkpoints: dict[str, Path]) -> None:
    expected = "experts in NF4: those of .*hf-bf16 are BF16, expected --experts mxfp4 or bf16 of a build"
    with pytest.raises(UsageError, match=expected):
        open_checkpoint(checkpoints["hf-bf16"], experts="nf4")


@pytest.mark.parametrize(
    ("blocksize", "form"), [(64, "nf4-32"), (128, "nf4-32"), (256, "nf4-32")], ids=["64", "128", "256"]
)
def test_blocks_that_run_on_over_the_ends_of_rows(
    checkpoints: dict[str, Path], tmp_path: Path, blocksize: int, form: str
) -> None:
    expected: Tensors = {}

    def change(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, value in tensors.items():
            found[name] = value
            if ".mlp.experts." in name and name.endswith(".weight"):
                parts, expected[name] = in_nf4(name, 1.1 * value.float(), nested=True, blocksize=blocksize)
                found |= parts
        return found

    folder = rewritten(checkpoints["hf-separate"], tmp_path / "made", change)
    assert open_checkpoint(folder).config.experts_format == form
    values = unpacked(folder)
    for name in "gate_up_proj", "down_proj":
        exact = torch.stack([expected[f"{EXPERTS}{name}s.{expert}.weight"] for expert in range(8)])
        assert torch.equal(values[f"{EXPERTS}{name}"].to(torch.bfloat16), exact)


def test_experts_with_tables_of_their_own_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    name = f"{EXPERTS}down_projs.3.weight.quant_map"

    def change(tensors: Tensors) -> Tensors:
        return tensors | {name: tensors[name] + 1}

    folder = rewritten(checkpoints["hf-separate-nf4"], tmp_path / "made", change)
    with pytest.raises(CheckpointError, match=rf"{name}: is not that of .*down_projs.0.weight; use --experts mxfp4"):
        unpacked(folder)
    assert unpacked(folder, "mxfp4")


def test_experts_with_blocks_of_their_own_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The shapes fit blocks of 32, the description of one expert says another size."""
    name = f"{EXPERTS}gate_up_projs.2.weight"

    def change(tensors: Tensors) -> Tensors:
        matrix = torch.randn(128, 96, generator=torch.Generator().manual_seed(1))
        parts, _ = in_nf4(name, matrix, nested=False)
        state = bytes(parts[f"{name}.quant_state.bitsandbytes__nf4"].tolist()).replace(
            b'"blocksize": 64', b'"blocksize": 48'
        )
        count = -(-128 * 96 // 48)
        return (
            tensors
            | parts
            | {
                f"{name}.absmax": torch.ones(count),
                f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
            }
        )

    folder = rewritten(checkpoints["hf-separate-nf4"], tmp_path / "made", change)
    with pytest.raises(CheckpointError, match=rf"{name}.quant_state.*: blocks of 48 weights, expected multiples of 32"):
        unpacked(folder)


def test_sizes_that_a_format_does_not_divide_are_a_problem_of_the_config() -> None:
    from dataclasses import replace

    from gptoss_export.model.config import violations

    config = replace(PRESETS["tiny"], experts_format="nf4")
    assert violations(config) == ["hidden_size: found 96, expected a multiple of 64 (experts in NF4)"]
    assert violations(replace(config, experts_format="nf5")) == [
        "experts_format: found 'nf5', expected mxfp4, nf4, nf4-32, bf16"
    ]
