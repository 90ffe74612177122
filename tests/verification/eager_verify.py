"""`verify` of eager artifacts, with one oracle for all artifacts of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from eager_artifact import Fault, Where, everywhere, load_eager, write_eager

from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint import Checkpoint
from gptoss_export.verification import verify as module
from gptoss_export.verification.oracles import OracleOutput, open_oracle
from gptoss_export.verification.report import Report


class Rows(NamedTuple):
    """The sizes of an artifact and the lengths of the prompts that it is verified with."""

    sizes: Sizes
    lengths: list[int]


# 73 rows in one case; 208 rows in the longer of two. Both wrap the ring of sliding layers.
FEW, MANY = Rows(Sizes((1,), 256, (16,)), [65]), Rows(Sizes((1,), 256, (16, 32)), [33, 200])


class _Remembered:
    """An oracle that runs the same sequence once."""

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        oracle = open_oracle(name, checkpoint, dtype, device)

        @cache
        def run(tokens: tuple[int, ...], rows: tuple[int, ...], near_tie: float) -> OracleOutput:
            return oracle.run(tokens, rows, near_tie)

        self._run = run

    def run(self, tokens: Sequence[int], rows: Sequence[int], near_tie: float = 0.0) -> OracleOutput:
        return self._run(tuple(tokens), tuple(rows), near_tie)


_oracles: dict[tuple[object, ...], _Remembered] = {}


def _opened(name: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> _Remembered:
    key = name, checkpoint.folder, checkpoint.config.experts_format, dtype, device
    if key not in _oracles:
        _oracles[key] = _Remembered(name, checkpoint, dtype, device)
    return _oracles[key]


def verified(
    folder: Path,
    checkpoint: Path,
    rows: Rows,
    dtype: str,
    fault: Fault | None = None,
    where: Where = everywhere,
    experts: str | None = None,
) -> Report:
    """The report of an artifact, written to `folder`, that has the fault in the programs that `where` names."""
    artifact = write_eager(folder, checkpoint, rows.sizes, dtype, experts)

    def load(folder: Path, verify_hashes: bool, **options: Any) -> Any:
        return load_eager(folder, checkpoint, fault, where)

    def keep_garbage() -> None:
        """Collecting it takes longer than these small models."""

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("load", load), ("open_oracle", _opened), ("_free_memory", keep_garbage)):
            patch.setattr(module, name, value)
        return module.verify(artifact, checkpoint, lengths=rows.lengths)


def distance(report: Report) -> float:
    """The largest deviation, as a multiple of its bound: above 1 the artifact fails."""
    pairs = [(row.gated, row.bound) for row in report.rows]
    pairs += [(row.tie, row.tie_bound) for row in report.rows if row.tie is not None and row.tie_bound is not None]
    return max(max(found.max / bound.max, found.rms / bound.rms) for found, bound in pairs)
