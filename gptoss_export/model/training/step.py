"""A training step of the decoder: tokens, targets and LoRA factors to the loss and the gradients of the factors.

Forward and backward are one graph, without autograd: what is kept between them is what the parts say they need. With
`recompute` a layer keeps its input alone, and backward computes the layer once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from ..adapter_factors import ATTENTION, EXPERTS
from ..config import ModelConfig
from ..decoder import GptOss, Layer, Rope
from ..parameters import LAYERS
from . import attention, experts
from .deltas import Delta, ExpertDelta, Gradients
from .lora import Training, factors
from .loss import cross_entropy


class _Deltas(NamedTuple):
    """The deltas of a layer, by projection and by matrix."""

    attention: dict[str, Delta]
    experts: dict[str, ExpertDelta]


_Kept: TypeAlias = tuple[attention.Activations, experts.Activations]


class TrainingStep(nn.Module):
    """The step over a model whose parameters are not trained."""

    def __init__(self, model: GptOss, config: ModelConfig, training: Training) -> None:
        super().__init__()
        self.model, self.training_of = model, training
        self.names = [factor.name for factor in factors(config, training)]
        self.layers: list[Layer] = list(model.model.layers)  # type: ignore[arg-type]

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        positions: torch.Tensor,
        given: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """tokens, targets and positions [T] int64 (loss.py, model/ops/packed_attention.py), and the factors by name.

        Returns the loss [] float32, and the gradient of each factor, in their order.
        """
        backbone = self.model.model
        kept: list[tuple[torch.Tensor, _Kept | None]] = []
        x = backbone.embed_tokens(tokens).float()
        rope = backbone.rotary_emb(positions)
        deltas = [self._deltas(index, given) for index in range(len(self.layers))]
        for layer, of_layer in zip(self.layers, deltas, strict=True):
            after, activations = _forward(layer, of_layer, x, rope, positions)
            kept.append((x, None if self.training_of.recompute else activations))
            x = after
        loss, grad = cross_entropy(x, backbone.norm, self.model.lm_head.weight, targets)
        gradients: Gradients = {}
        for index in reversed(range(len(deltas))):
            before, of_forward = kept.pop()
            layer, of_layer = self.layers[index], deltas[index]
            found: Gradients = {}
            activations = of_forward or _forward(layer, of_layer, before, rope, positions)[1]
            grad = _backward(layer, of_layer, activations, rope, positions, grad, found)
            gradients |= {_name(index, name): gradient for name, gradient in found.items()}
        return loss, *(gradients[name] for name in self.names)

    def _deltas(self, index: int, given: Mapping[str, torch.Tensor]) -> _Deltas:
        scale, targets = self.training_of.scale, self.training_of.targets

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return given[_name(index, f"{name}.lora_A")], given[_name(index, f"{name}.lora_B")]

        return _Deltas(
            {name: Delta(name, *pair(name), scale) for name in ATTENTION if name in targets},
            {name: ExpertDelta(name, *pair(name), scale) for name in EXPERTS if name in targets},
        )


def _forward(
    layer: Layer, deltas: _Deltas, x: torch.Tensor, rope: Rope, positions: torch.Tensor
) -> tuple[torch.Tensor, _Kept]:
    x, first = attention.forward(layer.self_attn, layer.input_layernorm, deltas.attention, x, rope, positions)
    x, second = experts.forward(layer.mlp, layer.post_attention_layernorm, deltas.experts, x)
    return x, (first, second)


def _backward(
    layer: Layer,
    deltas: _Deltas,
    kept: _Kept,
    rope: Rope,
    positions: torch.Tensor,
    grad: torch.Tensor,
    gradients: Gradients,
) -> torch.Tensor:
    first, second = kept
    grad = experts.backward(layer.mlp, layer.post_attention_layernorm, deltas.experts, second, grad, gradients)
    return attention.backward(
        layer.self_attn, layer.input_layernorm, deltas.attention, first, rope, positions, grad, gradients
    )


def _name(index: int, name: str) -> str:
    """The whole name of a factor, from its name in the layer."""
    part = "self_attn" if name.partition(".")[0] in ATTENTION else "mlp.experts"
    return f"{LAYERS}{index}.{part}.{name}"
