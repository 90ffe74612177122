"""The part of a LoRA adapter that belongs to experts, merged into their matrices.

The matrices must be plain: 4-bit weights would lose the adapter when they are rounded again. PEFT stores the factors in
one of two ways, for a matrix with `in` inputs and `out` outputs:

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.config import ModelConfig
from ..model.parameters import LAYERS
from .adapter_deltas import part_problems
from .layouts.layout import ExpertMatrix, StoredTensor, Tensors, expert_matrices

_OF_EXPERTS = re.compile(r"base_model\.model\.(?P<stem>model\.layers\.(?P<layer>\d+)\.mlp\.experts)\b.*")
_STACKED = re.compile(r"(?P<where>.*\.experts(\.base_layer)?)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_SEPARATE = re.compile(
    r"(?P<where>.*\.experts\.(?P<matrix>gate_up_proj|down_proj)s\.(?P<expert>\d+))\.lora_(?P<factor>[AB])"
    r"(\.default)?\.weight"
)
_SWAPPED_BEFORE = (0, 19)  # the version of PEFT

Scale = Callable[[str, int], float]  # module and rank to the factor of its product


@dataclass(frozen=True)
class ExpertDelta:
    """What an adapter adds to the matrix of one expert, or of all.

    expert   None: of all
    swapped  the product of the factors is the delta transposed
    """

    expert: int | None
    a: StoredTensor
    b: StoredTensor
    scale: float
    swapped: bool

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors."""
        return self.a, self.b

    def add(self, weight: torch.Tensor, stored: Sequence[torch.Tensor]) -> None:
        """As AdapterDelta.add, to the matrices [E, out, in]."""
        (a, b), count = stored, len(weight)
        if self.expert is not None:
            self._add(weight[self.expert], a, b)
            return
        for expert, (matrix, of_expert) in enumerate(zip(weight, a.chunk(count), strict=True)):
            self._add(matrix, of_expert, b[:, expert::count])

    def _add(self, matrix: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        delta = (b.float() @ a.float()) * self.scale
        matrix.copy_(matrix.float() + (delta.T if self.swapped else delta))


def expert_tensors(tensors: Tensors) -> list[str]:
    """The names of an adapter's tensors that belong to experts."""
    return sorted(name for name in tensors if _OF_EXPERTS.fullmatch(name))


def read_expert_deltas(
    config: ModelConfig, tensors: Tensors, settings: Mapping[str, Any], scale: Scale, problems: list[str]
) -> dict[str, tuple[ExpertDelta, ...]]:
    """The deltas of experts by the matrix that they belong to, such as model.layers.0.mlp.experts.down_proj. What is
    wrong is added to `problems`."""
    pairs: dict[str, dict[str, str]] = {}
    for name in expert_tensors(tensors):
        found = _SEPARATE.fullmatch(name) or _STACKED.fullmatch(name)
        if found is None:
            problems.append(f"{name}: expected lora_A and lora_B of experts, or of each expert")
        else:
            pairs.setdefault(found["where"], {})[found["factor"]] = name
    deltas: dict[str, list[ExpertDelta]] = {}
    swapped = _are_swapped(config, tensors, pairs, settings)
    for where, pair in sorted(pairs.items()):
        if missing := {"A", "B"} - pair.keys():
            problems.append(f"{where}.lora_{missing.pop()}.weight: missing")
            continue
        stem, delta = _delta(config, tensors, where, pair, swapped, scale, problems)
        if delta is not None:
            deltas.setdefault(stem, []).append(delta)
    return {stem: tuple(found) for stem, found in deltas.items()}


def _delta(
    config: ModelConfig,
    tensors: Tensors,
    where: str,
    pair: Mapping[str, str],
    swapped: bool,
    scale: Scale,
    problems: list[str],
) -> tuple[str, ExpertDelta | None]:
    found, of_one = _OF_EXPERTS.fullmatch(where), _SEPARATE.fullmatch(pair["A"])
    assert found is not None
    count = config.num_local_experts
    if int(found["layer"]) >= config.num_hidden_layers or (of_one and int(of_one["expert"]) >= count):
        problems.append(f"{where}: the model has {config.num_hidden_layers} layers of {count} experts, counted from 0")
        return "", None
    (a, _), (b, _) = (tensors[pair[factor]] for factor in "AB")
    total = a[0] if len(a) == 2 else 0
    if of_one is not None:
        expert, each = int(of_one["expert"]), total
        matrix = next(item for item in expert_matrices(config) if item.name == of_one["matrix"])
        swapped = False
    else:
        expert, each = None, total // count
        candidates = [item for item in expert_matrices(config) if _sizes(a, b) == _of_matrix(item, swapped)]
        if not candidates or total % count:
            shapes = (f"{_shapes(item, count, swapped)} of {item.name}" for item in expert_matrices(config))
            expected = " or ".join(shapes)
            problems.append(f"{where}: factors {list(a)} and {list(b)}, expected {expected}")
            return "", None
        (matrix,) = candidates
    stem = f"{LAYERS}{int(found['layer'])}.mlp.experts.{matrix.name}"
    inputs, outputs = _of_matrix(matrix, swapped)
    delta = ExpertDelta(
        expert,
        StoredTensor(pair["A"], (total, inputs)),
        StoredTensor(pair["B"], (outputs, total)),
        scale(where.removeprefix("base_model.model.") if of_one else stem, each),
        swapped,
    )
    problems += part_problems(delta.parts, tensors)
    return stem, delta


def _are_swapped(
    config: ModelConfig, tensors: Tensors, pairs: Mapping[str, Mapping[str, str]], settings: Mapping[str, Any]
) -> bool:
    """Whether the factors of all experts have inputs and outputs the other way round."""
    for pair in pairs.values():
        if len(pair) == 2 and _STACKED.fullmatch(pair["A"]):
            fits = set(_fitting(config, _sizes(*(tensors[pair[factor]][0] for factor in "AB"))))
            if len(fits) == 1:
                return fits.pop()
    version = re.match(r"(\d+)\.(\d+)", str(settings.get("peft_version") or ""))
    return version is not None and (int(version[1]), int(version[2])) < _SWAPPED_BEFORE


def _fitting(config: ModelConfig, sizes: tuple[int, int]) -> Iterator[bool]:
    for matrix in expert_matrices(config):
        yield from (swapped for swapped in (False, True) if sizes == _of_matrix(matrix, swapped))


def _sizes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
    """What a pair of factors takes and gives."""
    return (a[-1], b[0]) if a and b else (0, 0)


def _of_matrix(matrix: ExpertMatrix, swapped: bool) -> tuple[int, int]:
    return (matrix.rows, matrix.columns) if swapped else (matrix.columns, matrix.rows)


def _shapes(matrix: ExpertMatrix, count: int, swapped: bool) -> str:
    inputs, outputs = _of_matrix(matrix, swapped)
    return f"[{count} r, {inputs}] and [{outputs}, {count} r]"
