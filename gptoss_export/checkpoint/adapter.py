"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) as PEFT stores them, merged into a checkpoint's weights.

An adapter gives a matrix W [out, in] two factors, A [r, in] and B [out, r]. The merged weight is W + scale B A. The
scale is alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA (rsLoRA). The sum is computed in float32 and rounded to
the dtype of W once, as PEFT does.

What can be merged: adapters of attention's projections and of the unembedding; those of experts (expert_adapter.py)
where an artifact has their matrices in 16 bits. Experts of 4 bits would lose the adapter when it is merged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, raise_all
from ..json_file import read_object
from ..model.config import ModelConfig
from ..model.expert_formats import BF16
from ..values import shown
from .adapter_deltas import AdapterDelta, part_problems, with_deltas
from .expert_adapter import ExpertDelta, expert_tensors, read_expert_deltas
from .foreign import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .layouts.layout import Recipe, StoredTensor, Tensors
from .shards import read_header

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_BASE = re.compile(r"base_model\.model\.(?P<module>lm_head)\.base_layer\.weight")
_MERGE = "merge it with the tool that made it, and build the merged checkpoint"
# Settings of PEFT that change what an adapter means, and the values with which it is a plain one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
}


@dataclass(frozen=True)
class RowsDelta:
    """What an adapter adds to rows of a parameter.

    row         the first of them
    rows        how many
    a, b        the stored factors
    scale       of their product
    base        the weight below, where it is stored with the adapter: PEFT does so with an unembedding
    """

    row: int
    rows: int
    a: StoredTensor
    b: StoredTensor
    scale: float
    base: StoredTensor | None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors."""
        return (self.a, self.b) if self.base is None else (self.a, self.b, self.base)

    def add(self, weight: torch.Tensor, stored: Sequence[torch.Tensor]) -> None:
        """As AdapterDelta.add; a weight that is stored with the adapter takes the place of the parameter's."""
        a, b, *base = stored
        rows = weight[self.row : self.row + self.rows]
        if base:
            rows.copy_(base[0])
        rows.copy_(rows.float() + (b.float() @ a.float()) * self.scale)


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its file, the tensors in it, and what it adds to the parameters of each recipe."""

    file: Path
    tensors: Tensors
    deltas: dict[str, tuple[AdapterDelta, ...]]

    def merged(self, recipes: dict[str, Recipe]) -> dict[str, Recipe]:
        """The recipes, with the adapter merged."""
        return {name: with_deltas(recipe, self.deltas.get(name, ())) for name, recipe in recipes.items()}


def open_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Check the adapter in `folder` for a model of this shape. Raises CheckpointError with everything that is wrong."""
    settings = read_object(folder / ADAPTER_CONFIG, CheckpointError)
    tensors = read_header(folder / ADAPTER_WEIGHTS)
    problems = list(_setting_problems(settings))
    targets = dict(_targets(config))
    factors: dict[str, dict[str, str]] = {}
    experts = expert_tensors(tensors)
    expert_deltas: dict[str, tuple[ExpertDelta, ...]] = {}
    if experts and config.expert_format != BF16:
        option = config.expert_format.option.upper()
        problems.append(
            f"{len(experts)} tensors of experts, such as {experts[0]}: experts of {option} would lose the adapter; "
            f"build with --experts {BF16.name}"
        )
    elif experts:

        def scale_of(module: str, rank: int) -> float:
            return _scale(settings, module, rank, problems)

        expert_deltas = read_expert_deltas(config, tensors, settings, scale_of, problems)
    for name in tensors.keys() - set(experts):
        factor, base = _FACTOR.fullmatch(name), _BASE.fullmatch(name)
        if factor is not None and factor["module"] in targets:
            factors.setdefault(factor["module"], {})[factor["factor"]] = name
        elif base is not None:
            factors.setdefault(base["module"], {})["base"] = name
        else:
            expected = "lora_A and lora_B of q_proj, k_proj, v_proj and o_proj of self_attn, of lm_head and of experts"
            problems.append(f"{name}: expected {expected}")
    deltas: dict[str, list[RowsDelta]] = {}
    for module, pair in sorted(factors.items()):
        parameter, row, rows, columns = targets[module]
        missing = {"A", "B"} - pair.keys()
        if missing:
            problems.append(f"base_model.model.{module}.lora_{missing.pop()}.weight: missing")
            continue
        rank = tensors[pair["A"]][0][0] if tensors[pair["A"]][0] else 0
        base_part = StoredTensor(pair["base"], (rows, columns)) if "base" in pair else None
        delta = RowsDelta(
            row,
            rows,
            StoredTensor(pair["A"], (rank, columns)),
            StoredTensor(pair["B"], (rows, rank)),
            _scale(settings, module, rank, problems),
            base_part,
        )
        problems += part_problems(delta.parts, tensors)
        deltas.setdefault(parameter, []).append(delta)
    if not factors and not experts and not problems:
        problems.append(f"{ADAPTER_WEIGHTS} has no tensors")
    raise_all(CheckpointError, f"{folder}: an adapter that cannot be merged", problems)
    in_order = {name: tuple(sorted(each, key=lambda delta: delta.row)) for name, each in deltas.items()}
    return Adapter(folder / ADAPTER_WEIGHTS, tensors, {**in_order, **expert_deltas})


def _targets(config: ModelConfig) -> Iterator[tuple[str, tuple[str, int, int, int]]]:
    """Modules that an adapter may change: the parameter, its first row, rows and columns."""
    hidden = config.hidden_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    yield "lm_head", ("lm_head.weight", 0, config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        attention = f"model.layers.{layer}.self_attn."
        yield f"{attention}o_proj", (f"{attention}o_proj.weight", 0, hidden, q)
        row = 0
        for letter, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{attention}{letter}_proj", (f"{attention}qkv_proj.weight", row, rows, hidden)
            row += rows


def _setting_problems(settings: dict[str, Any]) -> Iterator[str]:
    if settings.get("peft_type") != "LORA":
        yield f"{ADAPTER_CONFIG}: peft_type is {shown(settings.get('peft_type'))}, expected 'LORA'; {_MERGE}"
    for name, plain in _PLAIN.items():
        if settings.get(name) not in plain:
            yield f"{ADAPTER_CONFIG}: {name} is {shown(settings[name])}, expected {shown(plain[-1])}; {_MERGE}"


def _scale(settings: dict[str, Any], module: str, rank: int, problems: list[str]) -> float:
    """The scale of a module's factors, by its own alpha and rank where a pattern gives them."""
    alpha = _by_pattern(settings, "alpha_pattern", module, settings.get("lora_alpha"))
    said = _by_pattern(settings, "rank_pattern", module, settings.get("r"))
    if type(said) is not int or said != rank:
        problems.append(f"{ADAPTER_CONFIG}: the rank of {module} is {shown(said)}, its factors have {rank}")
        return 0.0
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        problems.append(f"{ADAPTER_CONFIG}: lora_alpha of {module} is {shown(alpha)}, expected a number")
        return 0.0
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(settings: dict[str, Any], name: str, module: str, usual: Any) -> Any:
    """What `settings[name]` says of a module whose name ends as a key does, and otherwise `usual`."""
    patterns = settings.get(name) or {}
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), usual)
