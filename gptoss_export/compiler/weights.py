"""Puts a checkpoint's weights into an artifact.

A checkpoint whose experts are used as stored is linked, shard by shard, so that it costs no space. Where the file
system cannot link, the shards are copied, and a note says how much. What is computed (an adapter that is merged, NF4)
is written beside them. A checkpoint whose experts are rounded is written again, one layer at a time."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..artifact.manifest import Part, WeightSpec
from ..checkpoint import Checkpoint
from ..checkpoint.layouts.layout import Rounding
from ..machine_limits import writes
from ..model.decoder import yarn_inv_freq
from ..model.parameters import INV_FREQ, parameters
from ..progress import Progress

WEIGHTS = "weights"  # folder of the checkpoint's tensors
DERIVED = "derived.safetensors"  # tensors that follow from config.json
# What a file system answers that has no hard links, or none to another file system.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_weights(checkpoint: Checkpoint, dtype: str, folder: Path, progress: Progress) -> dict[str, WeightSpec]:
    """Write the weights below `folder`; returns for each weight which stored tensors it is made of. Raises OSError,
    and CheckpointError for weights that are not finite after they were converted."""
    (folder / WEIGHTS).mkdir()
    parts = _link_shards(checkpoint, folder, progress) if checkpoint.keeps_experts else {}
    parts |= _write_computed(checkpoint, folder, progress)
    inv_freq = yarn_inv_freq(checkpoint.config.rope, checkpoint.config.head_dim)
    with writes(folder / DERIVED):
        save_file({INV_FREQ: inv_freq}, folder / DERIVED)
    parts[INV_FREQ] = (Part(DERIVED, INV_FREQ),)
    return {
        item.name: WeightSpec(item.shape, item.dtype, parts[item.name]) for item in parameters(checkpoint.config, dtype)
    }


def weight_file_names(weights: dict[str, WeightSpec]) -> set[Path]:
    """The files that the weights lie in, relative to the artifact."""
    return {Path(part.file) for weight in weights.values() for part in weight.parts}


def _link_shards(checkpoint: Checkpoint, folder: Path, progress: Progress) -> dict[str, tuple[Part, ...]]:
    recipes = {name: recipe for name, recipe in checkpoint.recipes.items() if recipe.convert is None}
    shards = sorted({checkpoint.files[part.name] for recipe in recipes.values() for part in recipe.parts})
    for index, path in enumerate(shards):
        source, destination = path.resolve(), folder / WEIGHTS / path.name
        try:
            os.link(source, destination)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            left = shards[index:]
            size = sum(shard.stat().st_size for shard in left)
            progress.note(
                f"{path}: cannot be hard-linked ({error.strerror}); copying {len(left)} files, {size / 1e9:.1f} GB. "
                "Build on the file system of the checkpoint to save the space"
            )
            for count, shard in enumerate(left, start=1):
                progress.update(f"copy {shard.name}, {count} of {len(left)}")
                with writes(folder / WEIGHTS / shard.name):
                    shutil.copyfile(shard.resolve(), folder / WEIGHTS / shard.name)
            break
    return {
        name: tuple(Part(f"{WEIGHTS}/{checkpoint.files[part.name].name}", part.name) for part in recipe.parts)
        for name, recipe in recipes.items()
    }


def _write_computed(checkpoint: Checkpoint, folder: Path, progress: Progress) -> dict[str, tuple[Part, ...]]:
    """Write what is computed; everything, where the shards are not linked."""
    parts: dict[str, tuple[Part, ...]] = {}
    tensors: dict[str, torch.Tensor]
    rounding = Rounding()
    for stem, tensors in checkpoint.converted_groups(rounding, computed_alone=checkpoint.keeps_experts):
        progress.update(f"convert {stem}")
        file = f"{WEIGHTS}/{stem}.safetensors"
        with writes(folder / file):
            save_file(tensors, folder / file)
        parts |= {name: (Part(file, name),) for name in tensors}
        del tensors  # so that one layer is in memory at a time
    if rounding.relative:
        progress.note(
            f"the experts' weights ({checkpoint.layout.experts}) were rounded to MXFP4: the root mean square of the "
            f"errors is {rounding.relative:.1%} of that of the weights"
        )
    return parts
