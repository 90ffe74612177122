"""Starts the other ranks of an artifact that this process loads."""

from __future__ import annotations

from pathlib import Path

import torch

from ..artifact.manifest import Manifest
from .following import LoadFacts
from .group import RankGroup
from .processes import Torchrun, accept_peers, start_children


def start_ranks(
    manifest: Manifest,
    folder: Path,
    manifest_sha256: str,
    tune_process: bool,
    kv_memory: int | None,
    fixed_width: bool,
    torchrun: Torchrun | None,
) -> RankGroup:
    """The other ranks, on their way to load the artifact; this process is rank 0.

    torchrun  None: they are new processes, children of this one
    others    as LoadFacts has them

    Raises RunError and MachineError where they do not start.
    """
    ranks, on_gpu = manifest.sizes.ranks, manifest.device == "cuda"
    threads = max(1, torch.get_num_threads() // ranks)
    if tune_process and not on_gpu:
        torch.set_num_threads(threads)
    facts = LoadFacts(
        folder=str(folder.absolute()),
        manifest_sha256=manifest_sha256,
        tune_process=tune_process,
        kv_memory=kv_memory,
        fixed_width=fixed_width,
        threads=threads,
        first_gpu=torch.cuda.current_device() if on_gpu else 0,
    )
    group = RankGroup(start_children(ranks) if torchrun is None else accept_peers(torchrun), facts, manifest.device)
    group.join()
    return group
