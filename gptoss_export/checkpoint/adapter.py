"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) as PEFT stores them, merged into a checkpoint's weights.

An adapter gives a matrix W [out, in] two factors, A [r, in] and B [out, r] (adapters/factors.py). The merged weight is
W + scale B A. The sum is computed in float32 and rounded to the dtype of W once, as PEFT does.

`AddedAdapter` adds one to a model of Hugging Face, which then computes what an artifact with adapter slots does.

What a build can merge: adapters of attention's projections and of the unembedding; those of experts (expert_adapter.py)
where an artifact has their matrices in 16 bits. Experts of 4 bits would lose the adapter when it is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from ..adapters.expert_factors import expert_factors, expert_tensors
from ..adapters.factors import LM_HEAD, FactorPair, dense_factors
from ..adapters.settings import ADAPTER_CONFIG, ADAPTER_WEIGHTS, setting_problems
from ..errors import CheckpointError, raise_all
from ..json_file import read_object
from ..model.config import ModelConfig
from ..model.expert_formats import BF16
from ..model.parameters import LAYERS
from .adapter_deltas import AdapterDelta, stored_parts, with_deltas
from .expert_adapter import ExpertDelta
from .layouts.layout import Recipe, StoredTensor, Tensors
from .shards import read_header

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM


@dataclass(frozen=True)
class RowsDelta:
    """What an adapter adds to rows of a parameter.

    row   the first of them
    rows  how many
    pair  the factors, and where it is stored with the adapter the weight below
    """

    row: int
    rows: int
    pair: FactorPair

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors."""
        return stored_parts(self.pair)

    def add(self, weight: torch.Tensor, stored: Sequence[torch.Tensor]) -> None:
        """As AdapterDelta.add; a weight that is stored with the adapter takes the place of the parameter's."""
        a, b, *base = stored
        rows = weight[self.row : self.row + self.rows]
        if base:
            rows.copy_(base[0])
        rows.copy_(rows.float() + (b.float() @ a.float()) * self.pair.scale)


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its file, the tensors in it, and what it adds to the parameters of each recipe."""

    file: Path
    tensors: Tensors
    deltas: dict[str, tuple[AdapterDelta, ...]]

    def merged(self, recipes: dict[str, Recipe]) -> dict[str, Recipe]:
        """The recipes, with the adapter merged."""
        return {name: with_deltas(recipe, self.deltas.get(name, ())) for name, recipe in recipes.items()}


@dataclass(frozen=True)
class AddedAdapter:
    """A checked adapter that is added to whole matrices, whatever format an artifact has its experts in."""

    file: Path
    pairs: tuple[FactorPair, ...]

    def add_to(self, model: GptOssForCausalLM) -> None:
        """Add it to the parameters of Hugging Face's model, in place. Sums are float32 and rounded once."""
        parameters = dict(model.named_parameters())
        with safe_open(self.file, framework="pt") as file:
            for pair in self.pairs:
                stored = [file.get_tensor(part.name).to(model.device) for part in pair.parts]
                if pair.stacked or pair.expert is not None:
                    matrices = parameters[f"{LAYERS}{pair.layer}.mlp.experts.{pair.matrix}"].data
                    ExpertDelta(pair).add(matrices.mT, stored)  # theirs are [E, in, out]
                else:
                    module = pair.matrix if pair.layer is None else f"{LAYERS}{pair.layer}.self_attn.{pair.matrix}"
                    RowsDelta(0, pair.b.shape[0], pair).add(parameters[f"{module}.weight"].data, stored)


def open_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Check the adapter in `folder`, which is merged into the weights of a build of this shape. Raises CheckpointError
    with everything that is wrong."""
    tensors, pairs, of_experts = _read(folder, config, config.expert_format == BF16)
    deltas: dict[str, list[AdapterDelta]] = {}
    for name, delta in _rows_deltas(config, pairs):
        deltas.setdefault(name, []).append(delta)
    for pair in of_experts:
        deltas.setdefault(f"{LAYERS}{pair.layer}.mlp.experts.{pair.matrix}", []).append(ExpertDelta(pair))
    return Adapter(folder / ADAPTER_WEIGHTS, tensors, {name: tuple(each) for name, each in deltas.items()})


def open_added_adapter(folder: Path, config: ModelConfig) -> AddedAdapter:
    """Check the adapter in `folder` for a model of this shape. Raises CheckpointError with everything that is wrong."""
    _, pairs, of_experts = _read(folder, config, takes_experts=True)
    return AddedAdapter(folder / ADAPTER_WEIGHTS, (*pairs, *of_experts))


def _read(folder: Path, config: ModelConfig, takes_experts: bool) -> tuple[Tensors, list[FactorPair], list[FactorPair]]:
    """The tensors, and the factors of attention and of experts. takes_experts: experts would not lose the adapter."""
    settings = read_object(folder / ADAPTER_CONFIG, CheckpointError)
    tensors = read_header(folder / ADAPTER_WEIGHTS)
    problems = list(setting_problems(settings))
    experts = expert_tensors(tensors)
    of_experts: list[FactorPair] = []
    if experts and not takes_experts:
        option = config.expert_format.option.upper()
        problems.append(
            f"{len(experts)} tensors of experts, such as {experts[0]}: experts of {option} would lose the adapter; "
            f"build with --experts {BF16.name}, or with --adapter-slots"
        )
    else:
        of_experts = expert_factors(config, tensors, settings, problems)
    others = {name: tensors[name] for name in tensors.keys() - set(experts)}
    pairs = dense_factors(config, others, settings, problems)
    if not tensors and not problems:
        problems.append(f"{ADAPTER_WEIGHTS} has no tensors")
    raise_all(CheckpointError, f"{folder}: an adapter that cannot be merged", problems)
    return tensors, pairs, of_experts


def _rows_deltas(config: ModelConfig, pairs: Sequence[FactorPair]) -> Iterator[tuple[str, RowsDelta]]:
    """What is added to each parameter, in the order of its rows."""
    found = []
    for pair in pairs:
        rows = pair.b.shape[0]
        if pair.matrix == LM_HEAD:
            found.append(("lm_head.weight", RowsDelta(0, rows, pair)))
            continue
        q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        row = {"q_proj": 0, "k_proj": q, "v_proj": q + kv, "o_proj": 0}[pair.matrix]
        matrix = "o_proj" if pair.matrix == "o_proj" else "qkv_proj"
        found.append((f"{LAYERS}{pair.layer}.self_attn.{matrix}.weight", RowsDelta(row, rows, pair)))
    yield from sorted(found, key=lambda item: item[1].row)
