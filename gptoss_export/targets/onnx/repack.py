"""MXFP4 blocks in the layout that onnxruntime's QMoE wants for `quant_type` fp4, written beside the other weights.

    stored    [E, N, K / 32, 16]   two weights a byte: neighbours in K, the even one in the lower half
    repacked  [E, K, N / 2]        two weights a byte: neighbours in N, the even one in the lower half

The shape is part of it: with [E, N, K / 2], which is what the op's schema documents, QMoE loads and runs and computes garbage,
whatever the bytes.

A file holds one layer's, and one expert is repacked at a time: memory stays below two layers' blocks, a gigabyte for 120b.
"""

from __future__ import annotations

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...artifact.manifest import Part
from ..target import Plan

_FOLDER, _BLOCKS = "weights", "_blocks"


def repack(blocks: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K / 32, 16] of one expert to [K, N / 2]; N is even."""
    rows = blocks.flatten(1)
    first, second = rows[0::2], rows[1::2]
    even, odd = (first & 15) | (second << 4), (first >> 4) | (second & 240)
    return torch.stack((even.T, odd.T), dim=1).flatten(0, 1)


def unpack(repacked: torch.Tensor) -> torch.Tensor:
    """The inverse: uint8 [K, N / 2] to [N, K / 32, 16]."""
    even, odd = repacked[0::2].T, repacked[1::2].T
    first, second = (even & 15) | (odd << 4), (even >> 4) | (odd & 240)
    return torch.stack((first, second), dim=1).flatten(0, 1).unflatten(1, (-1, 16))


def repack_experts(plan: Plan) -> dict[str, Part]:
    """Repack the blocks of all layers into the plan's folder; where each weight's lie now, by its name."""
    names = [name for name in plan.weights if name.endswith(_BLOCKS)]
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.split(".")[2], []).append(name)
    parts: dict[str, Part] = {}
    for done, (layer, blocks) in enumerate(layers.items()):
        plan.steps.at(f"repack the experts, layer {done + 1} of {len(layers)}")
        file = f"{_FOLDER}/repacked-{int(layer):03}.safetensors"
        save_file({name: _repacked(plan, name) for name in blocks}, plan.folder / file)
        parts |= {name: Part(file, name) for name in blocks}
    return parts


def _repacked(plan: Plan, name: str) -> torch.Tensor:
    experts, rows, groups, half = plan.weights[name].shape
    (part,) = plan.weights[name].parts
    out = torch.empty(experts, groups * half * 2, rows // 2, dtype=torch.uint8)
    with safe_open(plan.folder / part.file, framework="pt") as stored:
        blocks = stored.get_slice(part.tensor)
        for expert in range(experts):
            out[expert] = repack(blocks[expert])
    return out
