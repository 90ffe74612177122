"""Inputs for a call like those of real use."""

from __future__ import annotations

from typing import Any

import torch

from .op_calls import Call


def real_inputs(call: Call, seed: int, device: torch.device, position: int) -> list[Any]:
    """Arguments for a call: random weights, random routing, queries that end at `position`."""
    random = torch.Generator(device).manual_seed(seed)
    drawn: list[Any] = []
    for name, value in call.arguments.items():
        if not isinstance(value, torch.Tensor):
            drawn.append(value)
            continue
        shape, options = tuple(value.shape), {"device": device, "generator": random}
        if name == "positions":
            length = shape[-1] if value.dim() == 2 else value.numel()
            start = max(0, position + 1 - length) // length * length
            tensor = torch.arange(start, start + length, device=device).expand(shape)
        elif name == "slots":
            tensor = torch.arange(value.numel(), device=device)
        elif name == "expert_indices":
            experts = call.arguments["down_blocks"].size(0)
            tensor = torch.rand(shape[0], experts, **options).topk(shape[1], dim=1).indices
        elif name == "routing_weights":
            tensor = torch.rand(shape, **options).softmax(dim=1)
        elif name.endswith("_blocks"):
            tensor = torch.randint(0, 256, shape, dtype=torch.uint8, **options)
        elif name.endswith("_scales"):
            tensor = torch.randint(118, 123, shape, dtype=torch.uint8, **options)
        elif name in ("cos", "sin"):
            tensor = torch.rand(shape, **options) * 2 - 1
        elif value.is_floating_point():
            # Matrices by their length, so that products stay near 1; a norm's weights are about 1 too.
            scale = shape[-1] ** -0.5 if name.endswith("weight") and value.dim() > 1 else 1.0
            tensor = torch.randn(shape, dtype=value.dtype, **options) * scale
        else:
            raise AssertionError(f"{call.op}: no real values known for {name}")
        drawn.append(tensor.to(value.dtype).contiguous())
    return drawn
