"""An artifact and a runner without compiled code, whose logits a test can change: what does `verify` notice?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gptoss_export.artifact.files import FileSpec
from gptoss_export.artifact.manifest import Manifest, Part, Provenance, WeightSpec, load_manifest, save_manifest
from gptoss_export.artifact.programs import Sizes, programs_of
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.model.parameters import parameters
from gptoss_export.verification.oracles import open_oracle

BLOCK = 16  # rows that prefill_logits yields at a time


class Place(NamedTuple):
    """Where a row of logits comes from: slot, length of its prompt, position, and whether it was decoded."""

    slot: int
    prompt: int
    position: int
    decoded: bool


Logits = Callable[[tuple[int, ...]], torch.Tensor]  # tokens to one row for each
Change = Callable[[torch.Tensor, Place], torch.Tensor]


def write_artifact(
    folder: Path,
    checkpoint: Path,
    sizes: Sizes,
    dtype: str = "float32",
    with_programs: bool = False,
    experts: str | None = None,
) -> Path:
    """A folder with the manifest of an artifact, and nothing else. with_programs: it has the programs' signatures."""
    config = open_checkpoint(checkpoint, experts=experts).config
    part = (Part("weights.safetensors", "weight"),)
    manifest = Manifest(
        target="none",
        target_options={},
        device="cpu",
        archs=("cpu",),
        dtype=dtype,
        model=config,
        sizes=sizes,
        stop_tokens=(),
        programs={
            item.name: item.signature(config, sizes, dtype) for item in programs_of(sizes, "cpu") if with_programs
        },
        weights={item.name: WeightSpec(item.shape, item.dtype, part) for item in parameters(config, dtype)},
        files={"weights.safetensors": FileSpec(0, "0" * 64)},
        versions={"torch": torch.__version__},
        source="",
        provenance=Provenance("", "", None, {}, "", {}),
    )
    folder.mkdir()
    save_manifest(manifest, folder)
    return folder


@cache
def _reference(checkpoint: Path) -> Logits:
    oracle = open_oracle("reference", open_checkpoint(checkpoint), torch.float32, torch.device("cpu"))

    @cache
    def logits(tokens: tuple[int, ...]) -> torch.Tensor:
        rows = range(len(tokens))
        return torch.stack(list(oracle.run(tokens, rows).logits.values()))

    return logits


class ReferenceRunner:
    """The calls of Runner that `verify` makes. Each one computes the whole sequence by the references of the ops."""

    def __init__(self, folder: Path, logits: Logits, change: Change) -> None:
        self.manifest = load_manifest(folder)
        self._logits, self._change = logits, change
        self.reset()

    def reset(self) -> None:
        self._tokens: list[list[int]] = [[] for _ in range(self.manifest.sizes.max_batch)]
        self._prompts = [0] * self.manifest.sizes.max_batch

    def prefill_logits(self, tokens: Sequence[int], slot: int) -> Iterator[torch.Tensor]:
        assert not self._tokens[slot]
        self._tokens[slot], self._prompts[slot] = list(tokens), len(tokens)
        logits = self._logits(tuple(tokens))
        changed = [self._changed(row, slot, position, False) for position, row in enumerate(logits)]
        yield from torch.stack(changed).split(BLOCK)

    def decode(self, tokens: Sequence[int | None]) -> torch.Tensor:
        assert len(tokens) == self.manifest.sizes.max_batch
        rows = []
        for slot, token in enumerate(tokens):
            row = torch.full((self.manifest.model.vocab_size,), torch.nan)  # of an idle slot: means nothing
            if token is not None:
                self._tokens[slot].append(token)
                last = self._logits(tuple(self._tokens[slot]))[-1]
                row = self._changed(last, slot, len(self._tokens[slot]) - 1, True)
            rows.append(row)
        return torch.stack(rows)

    def _changed(self, row: torch.Tensor, slot: int, position: int, decoded: bool) -> torch.Tensor:
        return self._change(row.clone(), Place(slot, self._prompts[slot], position, decoded))


def unchanged(row: torch.Tensor, place: Place) -> torch.Tensor:
    return row


def loader(checkpoint: Path, changes: dict[Path, Change]) -> Callable[..., Any]:
    """What stands in for `gptoss_export.load` in `verify`: a runner for each of these folders."""

    def load(folder: Path, verify_hashes: bool, **options: Any) -> ReferenceRunner:
        return ReferenceRunner(folder, _reference(checkpoint), changes.get(folder, unchanged))

    return load
