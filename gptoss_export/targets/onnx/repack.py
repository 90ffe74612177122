"""MXFP4 blocks in the layout that onnxruntime's QMoE reads, written in addition to the stored ones.

    stored    [E, N, K / 32, 16]   two weights a byte: neighbours in K, the even one in the lower half
    repacked  [E, K, N / 2]        two weights a byte: neighbours in N, the even one in the lower half

The shape matters as well. The op's schema documents [E, N, K / 2]; with that shape QMoE loads, runs and computes wrong
values, whatever the bytes are.

A file holds the blocks of one layer. They are repacked one expert at a time, so that no more than two copies of a
layer's blocks are in memory.
"""

from __future__ import annotations

import math

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...machine_limits import writes
from ...model.parameters import layer_of
from ..base_compiler import CompileJob
from .stored_tensors import repacked_file, repacked_shape

_BLOCKS = "_blocks"


def repack(blocks: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K / 32, 16] of one expert to [K, N / 2]; N is even."""
    rows = blocks.flatten(1)
    first, second = rows[0::2], rows[1::2]
    even, odd = (first & 15) | (second << 4), (first >> 4) | (second & 240)
    return torch.stack((even.T, odd.T), dim=1).flatten(0, 1)


def repack_experts(job: CompileJob) -> set[str]:
    """Repack the blocks of all layers into files of the job's folder; returns the names of the files."""
    layers: dict[int, list[str]] = {}
    for name in job.weights:
        layer = layer_of(name)
        if layer is not None and name.endswith(_BLOCKS):
            layers.setdefault(layer, []).append(name)
    size = sum(math.prod(job.weights[name].shape) for names in layers.values() for name in names)
    job.progress.note(
        f"onnxruntime reads the experts in a layout of its own: writing {size / 1e9:.1f} GB in addition to the weights"
    )
    files: set[str] = set()
    for count, names in enumerate(layers.values(), start=1):
        job.progress.update(f"repack the experts, layer {count} of {len(layers)}")
        file = repacked_file(names[0])
        with writes(job.folder / file):
            save_file({name: _repacked(job, name) for name in names}, job.folder / file)
        files.add(file)
    return files


def _repacked(job: CompileJob, name: str) -> torch.Tensor:
    """The blocks of all experts of one weight: uint8 [E, K, N / 2]."""
    (part,) = job.weights[name].parts
    out = torch.empty(repacked_shape(job.weights[name].shape), dtype=torch.uint8, device="cpu")
    with safe_open(job.folder / part.file, framework="pt") as stored:
        blocks = stored.get_slice(part.tensor)
        for expert in range(len(out)):
            out[expert] = repack(blocks[expert])
    return out
