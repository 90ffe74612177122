"""Starts the other ranks of an artifact that this process loads."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import torch

from ..artifact.manifest import Manifest
from ..cuda.gpu import all_gpus
from ..progress import Progress
from .following import LoadFacts
from .group import RankGroup
from .processes import RankProcess, Torchrun, accept_peers, killed_after_errors
from .torch_group import check_no_other_group


def start_ranks(
    manifest: Manifest,
    folder: Path,
    manifest_sha256: str,
    tune_process: bool,
    kv_memory: int | None,
    fixed_width: bool,
    started: list[RankProcess] | Torchrun,
    progress: Progress,
) -> RankGroup:
    """The other ranks, on their way to load the artifact; this process is rank 0.

    started  their processes (`start_children`), or how those of torchrun are found
    others   as LoadFacts has them

    Raises RunError and MachineError where they do not start.
    """
    check_no_other_group()
    ranks, on_gpu = manifest.sizes.ranks, manifest.device == "cuda"
    threads = max(1, torch.get_num_threads() // ranks)
    if tune_process and not on_gpu:
        torch.set_num_threads(threads)
    first_gpu = torch.cuda.current_device() if on_gpu else 0
    facts = LoadFacts(
        folder=str(folder.absolute()),
        manifest_sha256=manifest_sha256,
        tune_process=tune_process,
        kv_memory=kv_memory,
        fixed_width=fixed_width,
        threads=threads,
        first_gpu=first_gpu,
        through_host=on_gpu and _some_are_out_of_reach(ranks, first_gpu, progress),
    )
    processes = accept_peers(started) if isinstance(started, Torchrun) else started
    with killed_after_errors(processes):
        group = RankGroup(processes, facts, manifest.device)
    group.join()
    return group


def _some_are_out_of_reach(ranks: int, first: int, progress: Progress) -> bool:
    """Whether some GPUs do not reach each other's memory, which is said. NCCL finds its own way."""
    found = all_gpus()
    used = [found[(first + rank) % len(found)] for rank in range(ranks)]
    pairs = [f"{a.index} and {b.index}" for a, b in combinations(used, 2) if not (a.reaches(b) and b.reaches(a))]
    if pairs:
        progress.note(f"GPUs {', '.join(pairs)} do not reach each other's memory: all sums go through the host's")
    return bool(pairs)
