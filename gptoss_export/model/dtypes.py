"""torch dtypes and their names: in manifests and options, such as `bfloat16`, and in safetensors files."""

from __future__ import annotations

import torch

# What a checkpoint may hold, by the names that safetensors has for them. Every target reads each of them.
STORED = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "U8": torch.uint8}


def dtype_name(dtype: torch.dtype) -> str:
    """Turn torch.bfloat16 into "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Turn "bfloat16" into torch.bfloat16. Raises ValueError for a name that torch does not have."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype: found {name!r}, expected a name such as float32 or bfloat16")
    return found
