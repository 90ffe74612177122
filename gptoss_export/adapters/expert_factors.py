"""The factors of an adapter that belong to experts. PEFT stores them in one of two ways, for a matrix with `in` inputs
and `out` outputs:

  an nn.Linear for each expert    ...experts.down_projs.3.lora_A.weight [r, in], .lora_B.weight [out, r]
  a parameter of all E experts    ...experts.lora_A.weight [E r, in], .lora_B.weight [out, r E]
  (`target_parameters`)           and, where both matrices have factors, ...experts.base_layer.lora_A.weight

In the second way the shapes tell which matrix is meant. Row e r + k of A is row k of expert e, and column k E + e of B
is column k of expert e. Before PEFT 0.19 `in` and `out` were the other way round: then B_e A_e is the delta transposed.
The shape of gate_up's factors shows that. down's may be square, and lie as gate_up's do. Alone they are read as the
PEFT that config names wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..model.adapter_factors import AdaptedMatrix, adapted_matrices
from ..model.config import ModelConfig
from ..model.parameters import LAYERS
from .factors import FactorPair, StoredFactor, StoredTensors, part_problems
from .settings import scale_of

_OF_EXPERTS = re.compile(r"base_model\.model\.(?P<stem>model\.layers\.(?P<layer>\d+)\.mlp\.experts)\b.*")
_STACKED = re.compile(r"(?P<where>.*\.experts(\.base_layer)?)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_SEPARATE = re.compile(
    r"(?P<where>.*\.experts\.(?P<matrix>gate_up_proj|down_proj)s\.(?P<expert>\d+))\.lora_(?P<factor>[AB])"
    r"(\.default)?\.weight"
)
_SWAPPED_BEFORE = (0, 19)  # the version of PEFT


def expert_tensors(tensors: StoredTensors) -> list[str]:
    """The names of an adapter's tensors that belong to experts."""
    return sorted(name for name in tensors if _OF_EXPERTS.fullmatch(name))


def expert_factors(
    config: ModelConfig, tensors: StoredTensors, settings: Mapping[str, Any], problems: list[str]
) -> list[FactorPair]:
    """The factors of experts among the tensors. What is wrong is added to `problems`."""
    pairs: dict[str, dict[str, str]] = {}
    for name in expert_tensors(tensors):
        found = _SEPARATE.fullmatch(name) or _STACKED.fullmatch(name)
        if found is None:
            problems.append(f"{name}: expected lora_A and lora_B of experts, or of each expert")
        else:
            pairs.setdefault(found["where"], {})[found["factor"]] = name
    factors: list[FactorPair] = []
    swapped = _are_swapped(config, tensors, pairs, settings)
    for where, pair in sorted(pairs.items()):
        if missing := {"A", "B"} - pair.keys():
            problems.append(f"{where}.lora_{missing.pop()}.weight: missing")
            continue
        factors += _pair(config, tensors, where, pair, swapped, settings, problems)
    return factors


def _pair(
    config: ModelConfig,
    tensors: StoredTensors,
    where: str,
    pair: Mapping[str, str],
    swapped: bool,
    settings: Mapping[str, Any],
    problems: list[str],
) -> Iterator[FactorPair]:
    found, of_one = _OF_EXPERTS.fullmatch(where), _SEPARATE.fullmatch(pair["A"])
    assert found is not None
    layer, count = int(found["layer"]), config.num_local_experts
    if layer >= config.num_hidden_layers or (of_one and int(of_one["expert"]) >= count):
        problems.append(f"{where}: the model has {config.num_hidden_layers} layers of {count} experts, counted from 0")
        return
    (a, _), (b, _) = (tensors[pair[factor]] for factor in "AB")
    total = a[0] if len(a) == 2 else 0
    if of_one is not None:
        matrix = next(item for item in _matrices(config) if item.name == of_one["matrix"])
        expert, each, swapped = int(of_one["expert"]), total, False
    else:
        expert, each = None, total // count
        candidates = [item for item in _matrices(config) if _sizes(a, b) == _of_matrix(item, swapped)]
        if not candidates or total % count:
            expected = " or ".join(f"{_shapes(item, count, swapped)} of {item.name}" for item in _matrices(config))
            problems.append(f"{where}: factors {list(a)} and {list(b)}, expected {expected}")
            return
        (matrix,) = candidates
    module = where.removeprefix("base_model.model.") if of_one else f"{LAYERS}{layer}.mlp.experts.{matrix.name}"
    inputs, outputs = _of_matrix(matrix, swapped)
    read = FactorPair(
        layer,
        matrix.name,
        StoredFactor(pair["A"], (total, inputs)),
        StoredFactor(pair["B"], (outputs, total)),
        each,
        scale_of(settings, module, each, problems),
        expert,
        stacked=of_one is None,
        swapped=swapped,
    )
    problems += part_problems(read, tensors)
    yield read


def _are_swapped(
    config: ModelConfig, tensors: StoredTensors, pairs: Mapping[str, Mapping[str, str]], settings: Mapping[str, Any]
) -> bool:
    """Whether the factors of all experts have inputs and outputs the other way round."""
    for pair in pairs.values():
        if len(pair) == 2 and _STACKED.fullmatch(pair["A"]):
            fits = set(_fitting(config, _sizes(*(tensors[pair[factor]][0] for factor in "AB"))))
            if len(fits) == 1:
                return fits.pop()
    version = re.match(r"(\d+)\.(\d+)", str(settings.get("peft_version") or ""))
    return version is not None and (int(version[1]), int(version[2])) < _SWAPPED_BEFORE


def _matrices(config: ModelConfig) -> list[AdaptedMatrix]:
    return [matrix for matrix in adapted_matrices(config) if matrix.experts]


def _fitting(config: ModelConfig, sizes: tuple[int, int]) -> Iterator[bool]:
    for matrix in _matrices(config):
        yield from (swapped for swapped in (False, True) if sizes == _of_matrix(matrix, swapped))


def _sizes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
    """What a pair of factors takes and gives."""
    return (a[-1], b[0]) if a and b else (0, 0)


def _of_matrix(matrix: AdaptedMatrix, swapped: bool) -> tuple[int, int]:
    return (matrix.outputs, matrix.inputs) if swapped else (matrix.inputs, matrix.outputs)


def _shapes(matrix: AdaptedMatrix, count: int, swapped: bool) -> str:
    inputs, outputs = _of_matrix(matrix, swapped)
    return f"[{count} r, {inputs}] and [{outputs}, {count} r]"
