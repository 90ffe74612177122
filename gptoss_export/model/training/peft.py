"""LoRA factors as PEFT stores them: adapter_model.safetensors and adapter_config.json (PEFT from 0.19 on).

Factors of a projection have its name. The matrices of experts are parameters for PEFT (`target_parameters`), and all
experts have one pair of tensors: row e r + k of A [E r, in] is row k of expert e, and column k E + e of B [out, r E] is
column k of expert e. The names of both pairs are those of the module `experts`: gate_up's have `base_layer` in them
where down has factors too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..adapter_factors import ATTENTION, EXPERTS
from .lora import Training

_PREFIX = "base_model.model."


def peft_name(factor: str, training: Training) -> str:
    """PEFT's name of a factor, such as model.layers.0.self_attn.q_proj.lora_A."""
    module, _, letter = factor.rpartition(".")
    stem, _, name = module.rpartition(".")
    if name in EXPERTS:
        both = all(matrix in training.targets for matrix in EXPERTS)
        module = f"{stem}.base_layer" if both and name == EXPERTS[0] else stem
    return f"{_PREFIX}{module}.{letter}.weight"


def to_peft(factors: Mapping[str, torch.Tensor], training: Training) -> dict[str, torch.Tensor]:
    """Factors by name to PEFT's tensors by PEFT's names."""
    return {peft_name(name, training): _flat(name, value) for name, value in factors.items()}


def from_peft(stored: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A factor of this shape from PEFT's tensor."""
    if len(shape) == 2:
        return stored
    experts, first, second = shape
    if stored.size(0) == experts * first:  # A
        return stored.view(shape)
    return stored.view(first, second, experts).permute(2, 0, 1).contiguous()


def peft_shape(shape: tuple[int, ...], letter: str) -> tuple[int, int]:
    """The shape of PEFT's tensor for a factor of this shape; letter: A or B."""
    if len(shape) == 2:
        return shape[0], shape[1]
    experts, first, second = shape
    return (experts * first, second) if letter == "A" else (first, second * experts)


def peft_config(training: Training, base: str) -> dict[str, Any]:
    """adapter_config.json. base: the name of the model that the adapter is for."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": training.rank,
        "lora_alpha": training.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name for name in ATTENTION if name in training.targets],
        "target_parameters": [f"mlp.experts.{name}" for name in EXPERTS if name in training.targets],
        "inference_mode": True,
        "peft_version": "0.19.0",  # since then the factors of experts have inputs and outputs as they are here
    }


def _flat(name: str, value: torch.Tensor) -> torch.Tensor:
    if value.dim() == 2:
        return value.contiguous()
    if name.endswith("A"):
        return value.flatten(0, 1).contiguous()
    return value.permute(1, 2, 0).flatten(1).contiguous()
