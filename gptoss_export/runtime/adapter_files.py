"""Reads a LoRA adapter of PEFT as the programs of an artifact take it, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.expert_factors import expert_factors, expert_tensors
from ..adapters.factors import LM_HEAD, FactorPair, dense_factors
from ..adapters.settings import ADAPTER_CONFIG, ADAPTER_WEIGHTS, setting_problems
from ..artifact.manifest import Manifest
from ..errors import ArtifactError, CheckpointError, raise_all
from ..json_file import read_object
from ..model.adapter_factors import AdaptedMatrix, adapted_matrices, factor_names
from ..model.dtypes import STORED
from .dtype_conversion import converted, widened
from .stored_tensors import StoredFile, StoredTensor

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 3.3895313892515355e38  # of bfloat16: a larger number would become infinite
_NAMES = {dtype: name for name, dtype in STORED.items()}  # of dtypes, as safetensors has them


class AdapterFile:
    """A checked adapter, which fits an artifact.

    Raises CheckpointError with everything that is wrong: settings, names, shapes and ranks, and then all numbers that
    are not finite.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        settings = read_object(folder / ADAPTER_CONFIG, CheckpointError)
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{path}: not found")
        try:
            self._stored = StoredFile(path).tensors
        except ArtifactError as error:
            raise CheckpointError(str(error)) from None
        tensors = {name: (item.shape, _NAMES[item.dtype]) for name, item in self._stored.items()}
        problems = list(setting_problems(settings))
        config, experts = manifest.model, set(expert_tensors(tensors))
        others = {name: found for name, found in tensors.items() if name not in experts}
        pairs = [
            *expert_factors(config, tensors, settings, problems),
            *dense_factors(config, others, settings, problems),
        ]
        if not tensors and not problems:
            problems.append(f"{ADAPTER_WEIGHTS} has no tensors")
        problems += _unfit(pairs, manifest.sizes.adapter_rank)
        heading = f"{folder}: an adapter that this artifact cannot load"
        raise_all(CheckpointError, heading, problems)
        raise_all(CheckpointError, heading, (problem for pair in pairs for problem in self._not_finite(pair)))
        self._pairs: dict[tuple[int | None, str], list[FactorPair]] = {}
        for pair in pairs:
            self._pairs.setdefault((pair.layer, pair.matrix), []).append(pair)

    def factors(self) -> Iterator[tuple[str, memoryview]]:
        """The factors of the matrices that it changes, by their names, as bytes of one adapter slot: padded with zeros
        to the artifact's rank, B with the scale. One is in memory at a time."""
        import numpy as np

        matrices = {matrix.name: matrix for matrix in adapted_matrices(self._manifest.model)}
        for (layer, name), pairs in self._pairs.items():
            assert layer is not None
            shapes = matrices[name].shapes(1, self._manifest.sizes.adapter_rank)
            for letter, factor, (_, *shape) in zip("ab", factor_names(layer, name), shapes, strict=True):
                made = np.zeros(shape, np.float32)
                for pair in pairs:
                    self._put(made, letter, pair, matrices[name])
                yield factor, converted(made.data.cast("B"), "float32", self._manifest.dtype)

    def _put(self, made: np.ndarray, letter: str, pair: FactorPair, matrix: AdaptedMatrix) -> None:
        """Write one factor of a pair to its place."""
        to = made if pair.expert is None else made[pair.expert]
        values = self._values(pair)[letter == "b"]
        if pair.stacked:
            a, b = self._values(pair)
            of_a = a.reshape(matrix.experts, pair.rank, -1)  # [E, r, .]
            of_b = b.reshape(len(b), pair.rank, matrix.experts).transpose(2, 0, 1)  # [E, ., r]
            if pair.swapped:  # the delta is the product transposed
                of_a, of_b = of_b.transpose(0, 2, 1), of_a.transpose(0, 2, 1)
            values = of_a if letter == "a" else of_b
        if letter == "a":
            to[..., : pair.rank, :] = values
        else:
            to[..., : pair.rank] = values * pair.scale

    def _values(self, pair: FactorPair) -> tuple[np.ndarray, np.ndarray]:
        """The stored numbers of A and B in float32."""
        a, b = (_float32(self._stored[part.name]) for part in (pair.a, pair.b))
        return a, b

    def _not_finite(self, pair: FactorPair) -> Iterator[str]:
        import numpy as np

        for part, values, scale in zip(
            (pair.a, pair.b), self._values(pair), (1.0, max(abs(pair.scale), 1.0)), strict=True
        ):
            with np.errstate(over="ignore", invalid="ignore"):
                wrong = ~(np.abs(values * scale) <= _LARGEST)
            if wrong.any():
                count = f"{int(wrong.sum())} of {values.size} numbers"
                yield f"{part.name}: {count} are not finite, or not with the scale; train the adapter again"


def _unfit(pairs: Sequence[FactorPair], rank: int) -> Iterator[str]:
    """What a build could merge, and an artifact cannot load."""
    if any(pair.matrix == LM_HEAD for pair in pairs):
        yield (
            "lm_head: an artifact with adapter slots takes factors of attention and of experts alone; train the "
            "adapter without lm_head, or merge it with `gptoss-export build --adapter`"
        )
    largest = max(pairs, key=lambda pair: pair.rank, default=None)
    if largest is not None and largest.rank > rank:
        yield (
            f"{largest.a.name}: rank {largest.rank}, expected at most {rank} (--adapter-rank of the build); build "
            "again with a larger one"
        )
    seen: dict[tuple[int | None, str, int | None], FactorPair] = {}
    for pair in pairs:
        places = [(pair.layer, pair.matrix, pair.expert), (pair.layer, pair.matrix, None)]
        if other := next((seen[place] for place in places if place in seen), None):
            yield f"{pair.a.name}: belongs to the same matrix as {other.a.name}, expected one pair of factors for each"
        seen.setdefault(places[0], pair)


def _float32(stored: StoredTensor) -> np.ndarray:
    import numpy as np

    if stored.dtype == "float32":
        return np.frombuffer(stored.memory, np.float32).reshape(stored.shape)
    return widened(np.frombuffer(stored.memory, np.uint16), stored.dtype).reshape(stored.shape)
