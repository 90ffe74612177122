"""Recognises checkpoints of kinds that no layout reads: other quantizations, other file formats, parts of a model.

Each is refused in one line that names the kind and what to do, in place of a line for each tensor. The marks are names
and dtypes of tensors, as the tools write them. What config.json says decides only where no tensor does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..adapters.settings import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..errors import CheckpointError
from ..json_file import read_object
from ..values import shown
from .layouts.layout import Shape

_TAKE_MXFP4 = "take the MXFP4 or the 16-bit checkpoint that it was made from"
_SAVE_16_BIT = f"save it in 16 bits (dequantize it, or merge the fine-tune to 16 bits), or {_TAKE_MXFP4}"
_MERGE = "merge it into its base model (PEFT: merge_and_unload, then save_pretrained) and build the merged checkpoint"
_CONVERT = "save it as safetensors with the tool that wrote it (transformers: save_pretrained)"
_STACK = (
    "save it with the experts of a layer in one tensor (experts.gate_up_proj [experts, in, out]), as transformers does"
)

_LONGEST_NAME = 160  # characters of a tensor's name that an error shows


class _Kind(NamedTuple):
    """A kind, what marks a tensor of it (a pattern of its name, a pattern of its dtype), and what to do."""

    name: str
    tensor: str
    dtype: str
    advice: str


# The first that matches any tensor counts.
_KINDS = (
    _Kind("a LoRA adapter", r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b", "", _MERGE),
    _Kind("bitsandbytes NF4 in another arrangement", r"\.quant_state\.bitsandbytes__nf4$", "", _SAVE_16_BIT),
    _Kind("bitsandbytes FP4", r"\.quant_state\.bitsandbytes__fp4$", "", _SAVE_16_BIT),
    _Kind("bitsandbytes 4-bit", r"\.((nested_)?absmax|(nested_)?quant_map)$", "", _SAVE_16_BIT),
    _Kind("bitsandbytes 8-bit", r"\.SCB$", "", _SAVE_16_BIT),
    _Kind("ModelOpt NVFP4", r"[._]weight_scale_2$", "", _SAVE_16_BIT),
    _Kind("compressed-tensors", r"\.?weight_(packed|shape|global_scale|zero_point)$", "", _SAVE_16_BIT),
    _Kind("GPTQ", r"\bg_idx$", "", _SAVE_16_BIT),
    _Kind("AWQ or GPTQ", r"\b(qweight|qzeros)$", "", _SAVE_16_BIT),
    _Kind("quantized MLX", r"\.(weight|scales|biases)$", r"U32", _SAVE_16_BIT),
    _Kind("FP8", "", r"F8_E(4M3|5M2).*", _SAVE_16_BIT),
    _Kind("FP8", r"[._]weight_scale(_inv)?$", "", _SAVE_16_BIT),
)
# Floats in another arrangement. Names of MXFP4 and of the layouts match none of them.
_ARRANGEMENTS = (
    _Kind("experts of a tensor each", r"\.mlp\.experts\.((gate_up|gate|up|down)_projs?\.)?\d+\.", "", _STACK),
    _Kind("gate and up of the experts apart", r"\.mlp\.experts\.(gate|up)_proj\b", "", _STACK),
    _Kind(
        "names of a training wrapper",
        r"^(module|_orig_mod|_fsdp_wrapped_module|base_model|model\.model|language_model)\.",
        "",
        "unwrap the model before it is saved, so that names begin with model.layers",
    ),
)
# quantization_config.quant_method of config.json, and how its tools spell themselves.
_METHODS = {"awq": "AWQ", "gptq": "GPTQ", "fp8": "FP8", "fbgemm_fp8": "FP8", "modelopt": "ModelOpt"}


def refuse_other_files(folder: Path) -> None:
    """Raise CheckpointError for a path that holds a model in another form, judged by the names of its files."""
    if folder.is_file():
        kind = "a GGUF file" if _is_gguf(folder) else "a file"
        advice = f"; {_TAKE_MXFP4}" if _is_gguf(folder) else ""
        raise CheckpointError(f"{folder}: found {kind}, expected a folder with config.json and *.safetensors{advice}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; expected one with config.json and *.safetensors")
    files = sorted(path.name for path in folder.iterdir())
    weights = [name for name in files if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if weights or any(name.endswith(".safetensors.index.json") for name in files):
        if "config.json" not in files and ADAPTER_CONFIG in files:
            raise CheckpointError(_adapter(folder))
        return
    if any(name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) for name in files):
        raise CheckpointError(_adapter(folder))
    for kind, endings, advice in (
        ("GGUF", (".gguf",), _TAKE_MXFP4),
        ("pickled weights, which run code when they are opened", (".bin", ".pt", ".pth", ".ckpt"), _CONVERT),
        ("a checkpoint of a training run", (".distcp",), _CONVERT),
        ("weights of TensorFlow or Flax", (".h5", ".msgpack"), _CONVERT),
    ):
        if found := [name for name in files if name.endswith(endings)]:
            raise CheckpointError(
                f"{folder}: found {kind} ({shown(found[0])}), expected config.json and *.safetensors; {advice}"
            )
    if "config.json" in files:
        return
    if "manifest.json" in files:
        raise CheckpointError(f"{folder}: found an artifact, expected the checkpoint that it was built from")
    if inner := sorted(path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json")):
        raise CheckpointError(f"{folder}: holds no config.json; did you mean {inner[0]}?")


def refuse_other_tensors(folder: Path, tensors: Mapping[str, tuple[Shape, str]]) -> None:
    """Raise CheckpointError if these tensors (shape and dtype by name) are of a kind that no layout reads.

    For a checkpoint that fits no layout: a right one is never refused by its names.
    """
    kind = _find(_KINDS, tensors)
    method = _quant_method(folder)
    if kind is None and method not in (None, "mxfp4"):
        named = _METHODS.get(str(method), "weights of another quantization")
        kind = _Kind(named, "", "", _SAVE_16_BIT), f"quant_method of config.json is {shown(method)}"
    if kind is None:
        kind = _find(_ARRANGEMENTS, tensors)
    if kind is None:
        return
    (name, _, _, advice), example = kind
    if name == "AWQ or GPTQ":
        name = _METHODS.get(str(method), name)
    raise CheckpointError(f"{folder}: found {name} ({example}), which no layout reads; {advice}")


def _find(kinds: Iterable[_Kind], tensors: Mapping[str, tuple[Shape, str]]) -> tuple[_Kind, str] | None:
    for kind in kinds:
        name_pattern, dtype_pattern = re.compile(kind.tensor), re.compile(kind.dtype or ".*")
        for name, (_, dtype) in tensors.items():
            if name_pattern.search(name) and dtype_pattern.fullmatch(dtype):
                return kind, f"such as {name[:_LONGEST_NAME]!r}, {dtype}"
    return None


def _adapter(folder: Path) -> str:
    base: Any = None
    with suppress(CheckpointError):
        base = read_object(folder / ADAPTER_CONFIG, CheckpointError).get("base_model_name_or_path")
    of = f" of {shown(base)}" if isinstance(base, str) else ""
    return f"{folder}: found a LoRA adapter{of} alone, expected a whole model; {_MERGE}"


def _quant_method(folder: Path) -> Any:
    config = read_object(folder / "config.json", CheckpointError)
    quantization = config.get("quantization_config")
    return quantization.get("quant_method") if isinstance(quantization, dict) else None


def _is_gguf(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as stream:
        return stream.read(4) == b"GGUF"
    return False
