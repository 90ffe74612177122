"""Loads the weights: from the artifact's safetensors files to the device.

On a CPU a weight that is stored whole, and in the dtype that the programs want, is used where it is mapped.
Everything else is copied into one allocation: weights fragment no memory and all have the same alignment."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..artifact.manifest import Manifest, WeightSpec
from ..errors import ArtifactError, raise_all
from ..machine_limits import check_threads
from ..model.dtypes import torch_dtype
from .cuda.upload import Copy, upload

_ALIGNMENT = 256  # bytes; compiled CUDA code clones inputs that are not aligned to 16


def load_weights(manifest: Manifest, folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """Every weight by name, with the shape and dtype of the manifest.

    Raises ArtifactError naming every file that cannot be read and every stored tensor that does not match, and
    MachineError where torch cannot start its threads.
    """
    check_threads(torch.get_num_threads())
    with ExitStack() as stack:
        files = {}
        for name in sorted({part.file for weight in manifest.weights.values() for part in weight.parts}):
            try:
                files[name] = stack.enter_context(safe_open(folder / name, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ArtifactError(f"{folder / name}: cannot be read as safetensors ({error})") from None
        problems = [problem for name, spec in manifest.weights.items() if (problem := _mismatch(name, spec, files))]
        raise_all(ArtifactError, f"{folder}: weights do not match the manifest", problems)
        stored = {
            name: [files[part.file].get_tensor(part.tensor) for part in spec.parts]
            for name, spec in manifest.weights.items()
        }
        return _place(manifest, stored, device)


def _mismatch(name: str, spec: WeightSpec, files: dict) -> str | None:
    shapes = []
    for part in spec.parts:
        if part.tensor not in files[part.file].keys():  # noqa: SIM118
            return f"{name}: tensor {part.tensor} missing from {part.file}"
        shapes.append(files[part.file].get_slice(part.tensor).get_shape())
    found = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
    if found != list(spec.shape) or any(shape[1:] != shapes[0][1:] for shape in shapes):
        return f"{name}: stored shape {found}, expected {list(spec.shape)}"
    return None


def _place(manifest: Manifest, stored: dict[str, list[torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    offsets: dict[str, int] = {}
    size = 0
    for name, spec in manifest.weights.items():
        dtype = torch_dtype(spec.dtype)
        if device.type == "cpu" and len(stored[name]) == 1 and stored[name][0].dtype == dtype:
            weights[name] = stored[name][0]
            continue
        offsets[name] = size
        count = torch.Size(spec.shape).numel() * dtype.itemsize
        size += -(-count // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    copies: list[Copy] = []
    for name, offset in offsets.items():
        spec = manifest.weights[name]
        dtype, shape = torch_dtype(spec.dtype), torch.Size(spec.shape)
        weight = buffer[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        row = 0
        for part in stored[name]:
            rows = weight[row : row + part.size(0)]
            if device.type == "cuda" and part.dtype == dtype:
                copies.append((rows, part))
            else:
                rows.copy_(part)
            row += part.size(0)
        weights[name] = weight
    if copies:
        upload(copies, device)
    return weights
