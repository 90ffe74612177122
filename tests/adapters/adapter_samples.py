"""Adapters that PEFT makes of a tiny model, and what PEFT computes with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers."
RANK = 8  # of the artifacts; most adapters have a smaller one
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION, "r": 4, "lora_alpha": 8},
    "experts": {"target_modules": [], "target_parameters": EXPERTS, "r": 3, "lora_alpha": 9},
    "both": {"target_modules": ATTENTION, "target_parameters": EXPERTS, "r": 8, "use_rslora": True, "lora_alpha": 6},
    "some": {"target_modules": ["v_proj"], "target_parameters": EXPERTS[:1], "r": 2, "layers_to_transform": [1]},
}


class Oracle:
    """Hugging Face's model with an adapter of PEFT, or without one, in float32. The adapter is not merged."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model: Any = model

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits after each token, [n, V]."""
        return self._model(torch.tensor([list(tokens)]), use_cache=False).logits[0]

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """The most likely tokens."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


def make_adapter(transformer: GptOssForCausalLM, folder: Path, seed: int = 3, **settings: Any) -> Oracle:
    """An adapter of random numbers in `folder`, and the model that has it."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(copy.deepcopy(transformer), LoraConfig(**settings, init_lora_weights=False))
    wrapped.save_pretrained(folder)
    return Oracle(wrapped.eval())


def edited(folder: Path, **changes: Any) -> None:
    """Change settings of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter."""
    return load_file(folder / WEIGHTS)


def store(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors of an adapter."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
