"""dtypes and their names: in manifests and options, such as `bfloat16`, and in safetensors files. Imports torch only
where a torch dtype is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What a checkpoint may hold, by the names that safetensors has for them. Every target reads each of them.
STORED = {"BF16": "bfloat16", "F32": "float32", "F16": "float16", "U8": "uint8"}
ITEM_SIZES = {"bfloat16": 2, "float32": 4, "float16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1}


def dtype_name(dtype: torch.dtype) -> str:
    """Turn torch.bfloat16 into "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Turn "bfloat16" into torch.bfloat16. Raises ValueError for a name that torch does not have."""
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype: found {name!r}, expected a name such as float32 or bfloat16")
    return found
