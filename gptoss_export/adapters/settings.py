"""adapter_config.json: what PEFT says of an adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..values import shown

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_MERGE = "merge it with the tool that made it, and build the merged checkpoint"
# Settings of PEFT that change what an adapter means, and the values with which it is a plain one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
}


def setting_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings with which an adapter is no plain LoRA."""
    if settings.get("peft_type") != "LORA":
        yield f"{ADAPTER_CONFIG}: peft_type is {shown(settings.get('peft_type'))}, expected 'LORA'; {_MERGE}"
    for name, plain in _PLAIN.items():
        if settings.get(name) not in plain:
            yield f"{ADAPTER_CONFIG}: {name} is {shown(settings[name])}, expected {shown(plain[-1])}; {_MERGE}"


def scale_of(settings: Mapping[str, Any], module: str, rank: int, problems: list[str]) -> float:
    """The scale of a module's factors, by its own alpha and rank where a pattern gives them. What is wrong is added to
    `problems`."""
    alpha = _by_pattern(settings, "alpha_pattern", module, settings.get("lora_alpha"))
    said = _by_pattern(settings, "rank_pattern", module, settings.get("r"))
    if type(said) is not int or said != rank:
        problems.append(f"{ADAPTER_CONFIG}: the rank of {module} is {shown(said)}, its factors have {rank}")
        return 0.0
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        problems.append(f"{ADAPTER_CONFIG}: lora_alpha of {module} is {shown(alpha)}, expected a number")
        return 0.0
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(settings: Mapping[str, Any], name: str, module: str, usual: Any) -> Any:
    """What `settings[name]` says of a module whose name ends as a key does, and otherwise `usual`."""
    patterns = settings.get(name) or {}
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), usual)
