"""The oracle "transformers" gets the weights and the config that a build reads, whatever else config.json says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import SEED, TWO_LAYERS
from gptoss_export.checkpoint import Checkpoint, open_checkpoint
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.layouts.hugging_face import load_from_parameters
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.errors import CheckpointError
from gptoss_export.model.config import FULL
from gptoss_export.verification.oracles import open_oracle

CPU = torch.device("cpu")
TOKENS = list(range(3, 73))
ROWS = [0, 31, 32, 69]


def written(folder: Path, layout: str = "hf", layer_types: tuple[str, ...] = TWO_LAYERS.layer_types) -> Path:
    config = dataclasses.replace(TWO_LAYERS, layer_types=layer_types)
    write_synthetic(folder, config, LAYOUTS[layout], SEED, CPU)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def no_quantization_config(folder: Path) -> Path:
    edit_config(written(folder), lambda config: config.pop("quantization_config"))
    return folder


def quantization_config_beside_plain_experts(folder: Path) -> Path:
    edit_config(written(folder, "hf-bf16"), lambda config: config.update(quantization_config={"quant_method": "mxfp4"}))
    return folder


def another_quantization(folder: Path) -> Path:
    edit_config(written(folder), lambda config: config.update(quantization_config={"quant_method": "fp8"}))
    return folder


def config_of_the_original(folder: Path) -> Path:
    original = written(folder.with_name("original"), "original")
    shutil.copy(original / "config.json", written(folder) / "config.json")
    return folder


def no_index(folder: Path) -> Path:
    (written(folder) / "model.safetensors.index.json").unlink()
    return folder


def null_window_of_full_layers(folder: Path) -> Path:
    written(folder, layer_types=(FULL, FULL))
    edit_config(folder, lambda config: config.update(sliding_window=None))
    return folder


@pytest.mark.parametrize(
    "make",
    [
        no_quantization_config,
        quantization_config_beside_plain_experts,
        another_quantization,
        config_of_the_original,
        no_index,
        null_window_of_full_layers,
    ],
)
def test_oracles_agree(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """They would not if transformers drew weights at random or had another config."""
    folder = make(tmp_path / "checkpoint")
    theirs, ours = (
        open_oracle(name, open_checkpoint(folder), torch.float32, CPU).run(TOKENS, ROWS).logits
        for name in ("transformers", "reference")
    )
    for row in ROWS:
        torch.testing.assert_close(theirs[row], ours[row], atol=1e-4, rtol=1e-4)


class Changed:
    """A checkpoint whose parameters are changed after they are read."""

    def __init__(self, checkpoint: Checkpoint, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        self.folder, self.config, self.files = checkpoint.folder, checkpoint.config, checkpoint.files
        self._groups = dict(checkpoint.converted_groups())
        for group in self._groups.values():
            change(group)

    def converted_groups(self, rounding: Any = None) -> Any:
        yield from self._groups.items()


def rename_sinks(group: dict[str, torch.Tensor]) -> None:
    for name in [name for name in group if name == "model.layers.1.self_attn.sinks"]:
        group["model.layers.1.self_attn.sink"] = group.pop(name)


def forget_experts(group: dict[str, torch.Tensor]) -> None:
    for name in [name for name in group if "layers.0.mlp.experts.down_proj_" in name and "bias" not in name]:
        del group[name]


def shorten_norm(group: dict[str, torch.Tensor]) -> None:
    for name in [name for name in group if name == "model.norm.weight"]:
        group[name] = group[name][:-1]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            rename_sinks,
            ["layers.1.self_attn.sinks: transformers got no weight", "self_attn.sink: transformers has no such"],
        ),
        (forget_experts, ["model.layers.0.mlp.experts.down_proj: transformers got no weight"]),
        (shorten_norm, ["model.norm.weight: shape [95], transformers expected [96]"]),
    ],
)
def test_every_parameter_is_loaded(tmp_path: Path, change: Callable[[Any], None], messages: list[str]) -> None:
    checkpoint: Any = Changed(open_checkpoint(written(tmp_path / "checkpoint")), change)
    with pytest.raises(CheckpointError, match="use --oracle reference") as error:
        load_from_parameters(checkpoint, torch.float32, CPU)
    assert all(message in str(error.value) for message in messages), error.value
