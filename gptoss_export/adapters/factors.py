"""The factors of an adapter: A [r, in] and B [out, r] of each matrix W [out, in] that it changes.

The merged weight is W + scale B A (Hu et al. 2021, arXiv:2106.09685). The scale is alpha / r, or alpha / sqrt(r) for
rank-stabilized LoRA (rsLoRA). This module reads the names and shapes of attention's factors and of the unembedding's;
those of experts are in expert_factors.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..model.adapter_factors import ATTENTION, adapted_matrices
from ..model.config import ModelConfig
from ..model.dtypes import STORED
from ..model.parameters import LAYERS
from .settings import scale_of

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_BASE = re.compile(r"base_model\.model\.(?P<module>lm_head)\.base_layer\.weight")
_FLOATS = tuple(name for name, dtype in STORED.items() if "float" in dtype)  # as safetensors writes them
LM_HEAD = "lm_head"

StoredTensors: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of an adapter's tensors, by name


@dataclass(frozen=True)
class StoredFactor:
    """A tensor of the adapter's file, of any float dtype."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FactorPair:
    """The factors of a matrix.

    layer    None: the matrix is outside of the layers
    matrix   such as q_proj, or lm_head
    expert   that it belongs to; None: it belongs to none, or the factors are those of all experts
    stacked  they are those of all E experts: A [E r, in] with row e r + k of expert e, B [out, r E] with column k E + e
    rank     r, of each expert
    swapped  B A is the delta transposed: A has `out` columns, and B has `in` rows
    base     the weight below, where it is stored with the adapter: PEFT does so with an unembedding
    """

    layer: int | None
    matrix: str
    a: StoredFactor
    b: StoredFactor
    rank: int
    scale: float
    expert: int | None = None
    stacked: bool = False
    swapped: bool = False
    base: StoredFactor | None = None

    @property
    def parts(self) -> tuple[StoredFactor, ...]:
        """The tensors of the file."""
        return (self.a, self.b) if self.base is None else (self.a, self.b, self.base)


def dense_factors(
    config: ModelConfig, tensors: StoredTensors, settings: Mapping[str, Any], problems: list[str]
) -> list[FactorPair]:
    """The factors of attention and of the unembedding: of all tensors, which are none of experts. What is wrong is
    added to `problems`."""
    targets = dict(_targets(config))
    factors: dict[str, dict[str, str]] = {}
    for name in tensors:
        factor, base = _FACTOR.fullmatch(name), _BASE.fullmatch(name)
        if factor is not None and factor["module"] in targets:
            factors.setdefault(factor["module"], {})[factor["factor"]] = name
        elif base is not None:
            factors.setdefault(base["module"], {})["base"] = name
        else:
            expected = "lora_A and lora_B of q_proj, k_proj, v_proj and o_proj of self_attn, of lm_head and of experts"
            problems.append(f"{name}: expected {expected}")
    found = []
    for module, pair in sorted(factors.items()):
        layer, matrix, rows, columns = targets[module]
        missing = {"A", "B"} - pair.keys()
        if missing:
            problems.append(f"base_model.model.{module}.lora_{missing.pop()}.weight: missing")
            continue
        rank = tensors[pair["A"]][0][0] if tensors[pair["A"]][0] else 0
        factor_pair = FactorPair(
            layer,
            matrix,
            StoredFactor(pair["A"], (rank, columns)),
            StoredFactor(pair["B"], (rows, rank)),
            rank,
            scale_of(settings, module, rank, problems),
            base=StoredFactor(pair["base"], (rows, columns)) if "base" in pair else None,
        )
        problems += part_problems(factor_pair, tensors)
        found.append(factor_pair)
    return found


def part_problems(pair: FactorPair, tensors: StoredTensors) -> Iterator[str]:
    """What is wrong with the shapes and dtypes of a pair's tensors, which are there."""
    for part in pair.parts:
        shape, dtype = tensors[part.name]
        if shape != part.shape or 0 in shape:
            yield f"{part.name}: shape {list(shape)}, expected {list(part.shape)}"
        if dtype not in _FLOATS:
            yield f"{part.name}: dtype {dtype}, expected {' or '.join(_FLOATS)}"


def _targets(config: ModelConfig) -> Iterator[tuple[str, tuple[int | None, str, int, int]]]:
    """Modules that an adapter may change: layer, matrix, rows and columns."""
    yield LM_HEAD, (None, LM_HEAD, config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers):
        for matrix in adapted_matrices(config):
            if matrix.name in ATTENTION:
                module = f"{LAYERS}{layer}.self_attn.{matrix.name}"
                yield module, (layer, matrix.name, matrix.outputs, matrix.inputs)
