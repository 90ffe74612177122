"""torch.export: one program of the model as a graph with static shapes.

Nothing is traced with real memory. The model lives on the meta device and all inputs are fake tensors, so that a 120b
takes no more memory than a tiny model. Weights and caches are inputs of the graph, not constants of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..artifact.programs import Decode, Prefill, Program, Role, Signature, Sizes, TensorSpec, Unembed, kv_cache_names
from ..compat.pytorch import fake_tensors
from ..errors import LoweringError, raise_all
from ..model.config import ModelConfig
from ..model.decoder import GptOss
from ..model.dtypes import dtype_name, torch_dtype


@dataclass(frozen=True)
class TracedProgram:
    """A program, its call and its graph."""

    program: Program
    signature: Signature
    exported: ExportedProgram

    @property
    def name(self) -> str:
        return self.program.name


def build_model(config: ModelConfig, dtype: torch.dtype) -> GptOss:
    """The model on the meta device: names, shapes and dtypes of all parameters, no memory."""
    with torch.device("meta"):
        return GptOss(config, dtype).eval().requires_grad_(False)


def trace(
    program: Program, config: ModelConfig, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> TracedProgram:
    """Trace one program with fake tensors on `device`.

    Raises LoweringError where the results of the graph are not those of the program's signature.
    """
    signature = program.signature(config, sizes, dtype_name(dtype))
    with fake_tensors(), torch.device(device):
        fakes = {item.name: torch.empty(item.shape, dtype=torch_dtype(item.dtype)) for item in signature.inputs}
    data, weights = (
        {item.name: fakes[item.name] for item in signature.inputs_of(role)} for role in (Role.DATA, Role.WEIGHT)
    )
    with_caches = bool(signature.inputs_of(Role.CACHE))
    caches = [(fakes[k], fakes[v]) for k, v in kv_cache_names(config)] if with_caches else []
    module = _MODULES[type(program)](build_model(config, dtype))
    exported = torch.export.export(_Stateless(module), (data, caches, weights), strict=False)
    raise_all(
        LoweringError, f"program {program.name}: traced with other results", _result_problems(signature, exported)
    )
    return TracedProgram(program, signature, exported)


def _result_problems(signature: Signature, exported: ExportedProgram) -> list[str]:
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    found = [values[name] for name in exported.graph_signature.user_outputs]
    if len(found) != len(signature.outputs):
        return [f"{len(found)} results, expected {len(signature.outputs)}"]
    described = [
        TensorSpec(item.name, Role.DATA, tuple(value.shape), dtype_name(value.dtype))
        for item, value in zip(signature.outputs, found, strict=True)
    ]
    return [f"{a.name} is {a}, expected {b}" for a, b in zip(described, signature.outputs, strict=True) if a != b]


class _Decode(nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any, positions: Any, slots: Any, caches: Any) -> Any:
        hidden = self.model.backbone(tokens[:, None], positions[:, None], slots, caches)
        return self.model.unembed(hidden)


class _Prefill(nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any, positions: Any, slots: Any, caches: Any) -> Any:
        segments = slots.size(0)
        return self.model.backbone(tokens.view(segments, -1), positions.view(segments, -1), slots, caches)


class _Unembed(nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Any) -> Any:
        return self.model.unembed(hidden)


_MODULES: dict[type[Program], type[nn.Module]] = {Decode: _Decode, Prefill: _Prefill, Unembed: _Unembed}


class _Stateless(nn.Module):
    """A program as a function of its data, caches and weights. Flattening the arguments gives the order of the
    signature."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = [program]  # in a list, so that its parameters do not become this module's

    def forward(self, data: dict[str, Any], caches: list[Any], weights: dict[str, Any]) -> Any:
        arguments = (*data.values(), *([caches] if caches else []))
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self._program[0], named, arguments)
