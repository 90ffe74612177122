"""torch.export: one program as a graph. Shapes are static, but for the pages of the caches and the rows of a choice and
of interleaving.

Nothing is traced with real memory. The model lives on the meta device and all inputs are fake tensors, so that a 120b
takes no more memory than a tiny model. Weights and caches are inputs of the graph, not constants of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.export import ExportedProgram

from ..artifact.calls import Role, Signature, TensorSpec
from ..artifact.programs import (
    AllLogits,
    Choose,
    Decode,
    Interleave,
    Prefill,
    Program,
    Sizes,
    Train,
    Unembed,
    kv_cache_names,
    page_table_names,
)
from ..compat.pytorch import fake_tensors
from ..errors import LoweringError, raise_all
from ..model.choice import choose_adjusted, choose_drawn, choose_limited
from ..model.config import ModelConfig
from ..model.decoder import GptOss
from ..model.dtypes import dtype_name, torch_dtype
from ..model.mxfp4 import interleave_words
from ..model.sampling_state import Choice
from ..model.sums_of_ranks import all_logits
from ..model.training.step import TrainingStep

_Call: TypeAlias = tuple[nn.Module, tuple[Any, ...], Any]  # a program, its arguments, which of their sizes are dynamic


@dataclass(frozen=True)
class TracedProgram:
    """A program, its call and its graph.

    ranks           how many share the model
    dynamic_shapes  which sizes of its arguments are no constants of the graph, as torch.export takes it
    """

    program: Program
    signature: Signature
    exported: ExportedProgram
    dynamic_shapes: Any
    ranks: int = 1

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
    free = program.likely_rows  # of the pages of the caches as well, of which there may be any number from 2 on
    with fake_tensors(), torch.device(device):
        fakes = {item.name: torch.empty(item.sizes(free), dtype=torch_dtype(item.dtype)) for item in signature.inputs}
    if isinstance(program, AllLogits):
        gathered = partial(all_logits, ranks=config.ranks, tokens=config.vocab_size)
        module, arguments, dynamic = _call_of_rows(gathered, signature, fakes)
    elif isinstance(program, (Choose, Interleave)):
        module, arguments, dynamic = _call_of_rows(_FUNCTIONS[program], signature, fakes)
    elif isinstance(program, Train):
        module, arguments, dynamic = _training_call(program, config, dtype, signature, fakes)
    else:
        module, arguments, dynamic = _model_call(program, config, dtype, signature, fakes)
    exported = torch.export.export(module, arguments, strict=False, dynamic_shapes=dynamic)
    raise_all(
        LoweringError, f"program {program.name}: traced with other results", _result_problems(signature, exported)
    )
    return TracedProgram(program, signature, exported, dynamic, config.ranks)


def _model_call(
    program: Program, config: ModelConfig, dtype: torch.dtype, signature: Signature, fakes: Mapping[str, torch.Tensor]
) -> _Call:
    data, weights = (_of_role(role, signature, fakes) for role in (Role.DATA, Role.WEIGHT))
    has_kv = bool(signature.inputs_of(Role.CACHE))
    pages = {kind: fakes[name] for kind, name in page_table_names(config).items()} if has_kv else {}
    caches = [(fakes[k], fakes[v]) for k, v in kv_cache_names(config)] if has_kv else []
    of_caches = {0: torch.export.Dim("pages", min=2)}
    adapters = _of_role(Role.ADAPTER, signature, fakes)
    of_adapters = (adapters,) if adapters else ()  # without any, a program has the arguments that it always had
    dynamic = (
        dict.fromkeys(data),
        dict.fromkeys(pages),
        [(of_caches, of_caches) for _ in caches],
        dict.fromkeys(weights),
        *(dict.fromkeys(found) for found in of_adapters),
    )
    module = _MODULES[type(program)](build_model(config, dtype))
    return _Stateless(module), (data, pages, caches, weights, *of_adapters), dynamic


def _training_call(
    program: Train, config: ModelConfig, dtype: torch.dtype, signature: Signature, fakes: Mapping[str, torch.Tensor]
) -> _Call:
    given = tuple(_of_role(role, signature, fakes) for role in (Role.DATA, Role.FACTOR, Role.WEIGHT))
    step = TrainingStep(build_model(config, dtype), config, program.training)
    return _StatelessTraining(step), given, tuple(map(dict.fromkeys, given))


def _call_of_rows(function: Callable[..., Any], signature: Signature, fakes: Mapping[str, torch.Tensor]) -> _Call:
    data, state, weights = (_of_role(role, signature, fakes) for role in (Role.DATA, Role.STATE, Role.WEIGHT))
    of_data = {0: torch.export.Dim("rows", min=2)}
    fixed = state | weights
    return _Function(function), (data, fixed), (dict.fromkeys(data, of_data), dict.fromkeys(fixed))


def _of_role(role: Role, signature: Signature, fakes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {item.name: fakes[item.name] for item in signature.inputs_of(role)}


def _result_problems(signature: Signature, exported: ExportedProgram) -> list[str]:
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    found = [values[name] for name in exported.graph_signature.user_outputs]
    if len(found) != len(signature.outputs):
        return [f"{len(found)} results, expected {len(signature.outputs)}"]
    described = [
        TensorSpec(item.name, item.role, tuple(_static(size) for size in value.shape), dtype_name(value.dtype))
        for item, value in zip(signature.outputs, found, strict=True)
    ]
    return [f"{a.name} is {a}, expected {b}" for a, b in zip(described, signature.outputs, strict=True) if a != b]


def _static(size: int | torch.SymInt) -> int | None:
    return size if isinstance(size, int) else None


class _Decode(nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any, positions: Any, slots: Any, pages: Any, caches: Any, adapters: Any = None) -> Any:
        hidden = self.model.backbone(tokens[:, None], positions[:, None], slots, pages, caches, adapters)
        return *self.model.unembed(hidden), positions + (positions >= 0)


class _Prefill(nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any, positions: Any, slots: Any, pages: Any, caches: Any, adapters: Any = None) -> Any:
        tokens, positions = (given.view(slots.size(0), -1) for given in (tokens, positions))
        return self.model.backbone(tokens, positions, slots, pages, caches, adapters)


class _Unembed(nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Any) -> Any:
        return self.model.unembed(hidden)


_MODULES: dict[type[Program], type[nn.Module]] = {Decode: _Decode, Prefill: _Prefill, Unembed: _Unembed}


# Programs that do not compute the model, and the function that each of them is.
_FUNCTIONS: dict[Program, Callable[..., Any]] = {
    Choose(Choice.DRAWN): choose_drawn,
    Choose(Choice.LIMITED): choose_limited,
    Choose(Choice.ADJUSTED): choose_adjusted,
    Interleave(): interleave_words,
}


class _Function(nn.Module):
    """A function of data, and of what has a fixed size: state, weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, data: dict[str, Any], fixed: dict[str, Any]) -> Any:
        return self._function(*data.values(), *fixed.values())


class _Stateless(nn.Module):
    """A program as a function of its data, pages, caches, weights and adapters. Flattening the arguments gives the
    order of the signature."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = [program]  # in a list, so that its parameters do not become this module's

    def forward(
        self,
        data: dict[str, Any],
        pages: dict[str, Any],
        caches: list[Any],
        weights: dict[str, Any],
        adapters: dict[str, Any] | None = None,
    ) -> Any:
        arguments = (*data.values(), *([pages, caches] if caches else []), *([adapters] if adapters else []))
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self._program[0], named, arguments)


class _StatelessTraining(nn.Module):
    """A training step as a function of its data, factors and weights."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self._step = [step]  # in a list, so that its parameters do not become this module's

    def forward(self, data: dict[str, Any], factors: dict[str, Any], weights: dict[str, Any]) -> Any:
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self._step[0], named, (*data.values(), factors))
