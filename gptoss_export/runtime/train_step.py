"""A loaded training step: the LoRA factors, and the program that gives their gradients. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact.calls import Role
from ..artifact.manifest import Manifest
from ..artifact.programs import Train
from ..errors import RunError
from ..model.training.lora import Factor, Training, factors
from .packed_batch import PackedBatch, pack
from .tensors import LoadedProgram
from .trained_adapter import read_adapter, write_adapter


class TrainStep:
    """The training step of an artifact (`gptoss_export.load_train_step`).

    step = load_train_step("artifact")
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-4)
    for sequences in data:
        loss = step(step.pack(sequences))
        optimizer.step()
        optimizer.zero_grad()
    step.save_adapter("adapter")

    manifest  of the artifact
    factors   the LoRA factors by name, float32 on the device of the artifact; those of experts are [E, r, in] and
              [E, out, r]. The program reads what they hold when it is called

    A is drawn as PEFT draws it, uniform in +-1 / sqrt(in). B is zero, so that the first loss is that of the model.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, program: LoadedProgram, weights: Mapping[str, Any], seed: int
    ) -> None:
        assert manifest.sizes.training is not None
        self.manifest, self._folder, self._program = manifest, folder, program
        self.training: Training = manifest.sizes.training
        signature = manifest.programs[Train(self.training).name]
        self._weights = [weights[item.name] for item in signature.inputs_of(Role.WEIGHT)]
        self._device = self._weights[0].device
        self._wanted = factors(manifest.model, self.training)
        generator = torch.Generator().manual_seed(seed)
        self.factors: dict[str, nn.Parameter] = {
            item.name: nn.Parameter(_first(item, generator).to(self._device)) for item in self._wanted
        }

    def parameters(self) -> Iterator[nn.Parameter]:
        """The factors, for an optimizer of torch."""
        yield from self.factors.values()

    def pack(self, sequences: Any, targets: Any = None) -> PackedBatch:
        """Sequences of token ids as the row of a step, which holds `training.tokens` tokens.

        targets  None: of each token the next one. Otherwise as many as tokens for each sequence; -100 does not count

        Raises RunError with everything that is wrong with them.
        """
        return pack(sequences, targets, self.training.tokens, self.manifest.model.vocab_size)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The mean loss [] float32 of the targets that count. The gradients are added to `.grad` of the factors, as
        `loss.backward()` would.

        Raises RunError for a batch of another size.
        """
        expected = (self.training.tokens,)
        rows = batch.tokens, batch.targets, batch.positions
        for name, row in zip(("tokens", "targets", "positions"), rows, strict=True):
            if tuple(row.shape) != expected or row.dtype != torch.int64:
                raise RunError(
                    f"{name}: found {row.dtype} {list(row.shape)}, expected int64 {list(expected)}; use pack"
                )
        with torch.no_grad():
            data = [row.to(self._device) for row in rows]
            factors_now = [found.detach() for found in self.factors.values()]
            results: Any = self._program([*data, *factors_now, *self._weights])
            loss, *gradients = results
            for parameter, gradient in zip(self.factors.values(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return loss

    def save_adapter(self, folder: str | Path) -> None:
        """Write the factors into a new folder, as PEFT does: for `build --adapter`, and for PEFT itself.

        Raises UsageError where the folder exists.
        """
        base = self.manifest.source.partition(" (")[0]
        write_adapter(Path(folder), self.factors, self.training, base)

    def load_adapter(self, folder: str | Path) -> None:
        """Take the factors that `save_adapter` or PEFT has written, to train on. Raises ArtifactError with everything
        that does not fit."""
        for name, value in read_adapter(Path(folder), self._wanted, self.training).items():
            self.factors[name].data.copy_(value)


def _first(factor: Factor, generator: torch.Generator) -> torch.Tensor:
    """The values that training begins with."""
    if factor.name.endswith("B"):
        return torch.zeros(factor.shape)
    return (torch.rand(factor.shape, generator=generator) * 2 - 1) / math.sqrt(factor.shape[-1])
