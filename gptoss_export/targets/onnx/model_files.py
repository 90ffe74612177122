"""What both halves of the target know of an artifact: its files, the model's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

ANY_ARCH = "any"  # the arch of every artifact: a model has no machine code
MODEL = "model.onnx"
PROBE = "probe.onnx"  # for cuda (probe.py)
DESCRIPTION = "gptoss_export"  # the property of a model that holds its description (artifact/description.py)

# Inputs and outputs. onnxruntime-genai knows these names.
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
LOGITS = "logits"
KEY, VALUE = "key", "value"
# The new tokens whose logits are wanted: from the first to before the second. All of them where both are left out.
LOGITS_FROM, LOGITS_TO = "logits_from", "logits_to"

# When a model is loaded, the casts of its weights are folded. onnxruntime's default limits the size; lm_head is larger.
SESSION_OPTIONS = {"optimization.constant_folding_max_output_size_in_bytes": str(1 << 40)}


@dataclass(frozen=True)
class CacheNames:
    """The names of one cache: the input that holds the old tokens, and the output that holds the new ones as well."""

    past: str
    present: str


def past_name(layer: int | str, kind: str) -> str:
    """The input of a layer's cache of `kind` (KEY or VALUE)."""
    return f"past_key_values.{layer}.{kind}"


def present_name(layer: int | str, kind: str) -> str:
    """The output of a layer's cache of `kind` (KEY or VALUE)."""
    return f"present.{layer}.{kind}"


def layer_cache_names(layer: int) -> tuple[CacheNames, CacheNames]:
    """The key cache and the value cache of a layer."""
    keys, values = (CacheNames(past_name(layer, kind), present_name(layer, kind)) for kind in (KEY, VALUE))
    return keys, values


def cache_names(layers: int) -> list[CacheNames]:
    """The caches of all layers, in the order of the model's inputs and outputs."""
    return [names for layer in range(layers) for names in layer_cache_names(layer)]
