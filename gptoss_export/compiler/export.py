"""torch.export: the three programs of an artifact, with static shapes, from one model.

  decode          one token for each of B sequences   tokens [B], positions [B], slots [B]  -> as unembed_<B>
  prefill_<C>     up to C tokens of one sequence      tokens [C], positions [C], slots [1]  -> hidden [C, H]
  unembed_<R>     logits of R hidden states           hidden [R, H]
                                              -> logits [R, V], top [R], top_logprob [R], log_total [R]

A prefill chunk needs no logits but its last, and scoring a text needs them all: that is why the
unembedding is a program of its own. Caches and weights are inputs too, in that order after the others, so
that all programs share one copy of each; caches are written in place. Nothing is traced with real
memory: inputs are fake tensors, a 120b model takes no more than a tiny one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from ..model.config import ModelConfig
from ..model.kv_cache import CacheShape
from ..model.decoder import GptOss

SCORE_ROWS = 64  # rows of the second unembedding: enough to amortise reading its matrix once


@dataclass(frozen=True)
class Shapes:
    """The static sizes of an artifact."""

    max_batch: int
    max_context: int
    prefill_chunks: tuple[int, ...]

    @property
    def cache(self) -> CacheShape:
        return CacheShape(self.max_batch, self.max_context, max(self.prefill_chunks))


@dataclass(frozen=True)
class Input:
    """One tensor that a program takes. role: "data", "cache" (read and written) or "weight" (read)."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Program:
    """A traced program: its graph, its inputs in the order of the call, its outputs."""

    name: str
    exported: ExportedProgram
    inputs: tuple[Input, ...]
    outputs: tuple[Input, ...]


def build_model(config: ModelConfig, dtype: torch.dtype) -> GptOss:
    """The model on the meta device: names, shapes and dtypes of all parameters, no memory."""
    with torch.device("meta"):
        return GptOss(config, dtype).eval().requires_grad_(False)


def trace(
    config: ModelConfig, shapes: Shapes, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], Program]]:
    """The programs of an artifact by name, each traced when it is called for."""
    model = build_model(config, dtype)
    batch, context = shapes.max_batch, config.hidden_size
    data = {
        "decode": {"tokens": _ids(batch), "positions": _ids(batch), "slots": _ids(batch)},
        **{
            f"prefill_{chunk}": {"tokens": _ids(chunk), "positions": _ids(chunk), "slots": _ids(1)}
            for chunk in shapes.prefill_chunks
        },
        **{f"unembed_{rows}": {"hidden": ((rows, context), torch.float32)} for rows in (1, SCORE_ROWS)},
    }
    return {name: _tracer(name, model, config, shapes, dtype, device, data[name]) for name in data}


def _ids(count: int) -> tuple[tuple[int, ...], torch.dtype]:
    return (count,), torch.int64


class _Decode(torch.nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, positions, slots, caches):
        hidden = self.model.backbone(tokens[:, None], positions[:, None], slots, caches)
        return self.model.unembed(hidden)


class _Prefill(torch.nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, positions, slots, caches):
        return self.model.backbone(tokens[None], positions[None], slots, caches)


class _Unembed(torch.nn.Module):
    def __init__(self, model: GptOss) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden):
        return self.model.unembed(hidden)


class _Stateless(torch.nn.Module):
    """A program as a function of its data, caches and weights: weights are inputs, not constants."""

    def __init__(self, program: torch.nn.Module) -> None:
        super().__init__()
        self._program = [program]  # in a list, so that its parameters are not this module's

    def forward(self, data: dict, caches: list, weights: dict):
        arguments = (*data.values(), *([caches] if caches else []))
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self._program[0], named, arguments)


_KINDS: dict[str, type[torch.nn.Module]] = {"decode": _Decode, "prefill": _Prefill, "unembed": _Unembed}
_CHOICE = ("logits", "top", "top_logprob", "log_total")
_OUTPUTS = {"decode": _CHOICE, "prefill": ("hidden",), "unembed": _CHOICE}


def _tracer(name, model, config, shapes, dtype, device, data) -> Callable[[], Program]:
    def trace_now() -> Program:
        kind = name.partition("_")[0]
        inputs = [Input(key, "data", *spec) for key, spec in data.items()]
        layers = range(config.num_hidden_layers) if kind != "unembed" else ()
        for layer in layers:
            shape = shapes.cache.tensor(config, layer)
            inputs += [Input(f"{half}_cache.{layer}", "cache", shape, dtype) for half in "kv"]
        inputs += [
            Input(weight, "weight", tuple(value.shape), value.dtype)
            for weight, value in model.named_parameters()
            if kind == "decode" or weight.startswith(("model.norm.", "lm_head.")) == (kind == "unembed")
        ]
        with FakeTensorMode(), torch.device(device):
            fakes = [torch.empty(spec.shape, dtype=spec.dtype) for spec in inputs]
        arguments = _structured(inputs, fakes)
        exported = torch.export.export(_Stateless(_KINDS[kind](model)), arguments, strict=False)
        meta = exported.graph_signature.user_outputs
        values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
        outputs = tuple(
            Input(label, "data", tuple(values[node].shape), values[node].dtype)
            for label, node in zip(_OUTPUTS[kind], meta, strict=True)
        )
        return Program(name, exported, tuple(inputs), outputs)

    return trace_now


def _structured(inputs: list[Input], values: list[torch.Tensor]) -> tuple[Any, ...]:
    """Flat inputs to the arguments of `_Stateless`, whose flattening gives the same order back."""
    by_role: dict[str, dict[str, torch.Tensor]] = {"data": {}, "cache": {}, "weight": {}}
    for spec, value in zip(inputs, values, strict=True):
        by_role[spec.role][spec.name] = value
    flat = list(by_role["cache"].values())
    caches = list(zip(flat[0::2], flat[1::2], strict=True))
    return by_role["data"], caches, by_role["weight"]
