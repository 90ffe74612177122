"""LoRA factors in a folder, as PEFT writes and reads them (model/training/peft.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..artifact.atomic_folder import replace_folder
from ..errors import ArtifactError, UsageError, raise_all
from ..json_file import read_object
from ..machine_limits import writes
from ..model.training.lora import Factor, Training
from ..model.training.peft import from_peft, peft_config, peft_name, peft_shape, to_peft
from ..values import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(folder: Path, factors: Mapping[str, torch.Tensor], training: Training, base: str) -> None:
    """Write a new folder that `build --adapter` and PEFT read. It appears complete or not at all.

    Raises UsageError where the folder exists, OSError where it cannot be written.
    """
    stored = to_peft({name: value.detach().cpu() for name, value in factors.items()}, training)
    with replace_folder(folder, UsageError) as made, writes(made):
        save_file(stored, made / WEIGHTS, metadata={"format": "pt"})
        (made / CONFIG).write_text(json.dumps(peft_config(training, base), indent=2) + "\n", encoding="utf-8")


def read_adapter(folder: Path, wanted: tuple[Factor, ...], training: Training) -> dict[str, torch.Tensor]:
    """The factors that such a folder holds, by name. Raises ArtifactError with everything that does not fit."""
    settings = read_object(folder / CONFIG, ArtifactError)
    problems = [
        f"{CONFIG}: {name} is {shown(settings.get(name))}, expected {shown(value)} as in the artifact"
        for name, value in (("r", training.rank), ("lora_alpha", training.alpha))
        if settings.get(name) != value
    ]
    try:
        stored = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors has no class of its own for all of them
        raise ArtifactError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
    names = {peft_name(item.name, training): item for item in wanted}
    problems += [f"{name}: missing" for name in names if name not in stored]
    problems += [f"{name}: the artifact trains no such factor" for name in stored if name not in names]
    for name, item in names.items():
        expected = peft_shape(item.shape, item.name[-1])
        if name in stored and tuple(stored[name].shape) != expected:
            problems.append(f"{name}: found {list(stored[name].shape)}, expected {list(expected)}")
    raise_all(ArtifactError, f"{folder}: an adapter that the artifact does not train", problems)
    return {item.name: from_peft(stored[name].float(), item.shape) for name, item in names.items()}
