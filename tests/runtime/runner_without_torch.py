"""A runner without torch's Python in a process that has torch: its results become torch's tensors, so that the same
tests use both kinds of runner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_export import Runner, load
from gptoss_export.runtime.generation import Generation
from gptoss_export.targets.aoti import load as module


class RunnerWithoutTorch(Runner):
    """Gives what a Runner gives, as torch's tensors."""

    def prefill(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        return as_torch(super().prefill(tokens, slot))

    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[torch.Tensor]:
        return Converted(super().prefill_logits(tokens, slot))

    def score(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        return as_torch(super().score(tokens, slot))

    def decode(self, tokens: Sequence[int | None]) -> torch.Tensor:
        return as_torch(super().decode(tokens))

    def generate(self, *arguments: Any, **options: Any) -> Generation:
        return _with_tensors(super().generate(*arguments, **options))

    def generate_batch(self, *arguments: Any, **options: Any) -> list[Generation]:
        return [_with_tensors(result) for result in super().generate_batch(*arguments, **options)]


class Converted(Iterator[torch.Tensor]):
    """Blocks of logits, converted one by one."""

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._blocks = blocks

    def __next__(self) -> torch.Tensor:
        return as_torch(next(self._blocks))

    def close(self) -> None:
        self._blocks.close()  # type: ignore[attr-defined]


def as_torch(array: Any) -> torch.Tensor:
    assert not isinstance(array, torch.Tensor)
    return torch.from_numpy(np.array(array))


def load_without_torch(artifact: Path, **options: Any) -> Runner:
    """Load an artifact as a process does that has not imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sys", SimpleNamespace(modules={}))
        runner = load(artifact, **options)
    runner.__class__ = RunnerWithoutTorch
    return runner


def _with_tensors(result: Generation) -> Generation:
    result.logits = [as_torch(row) for row in result.logits]
    return result
