"""Loads an artifact: checks it against its manifest and this machine, and makes it ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .artifact.files import check_hashes, check_sizes
from .artifact.keys import Trust, read_trusted_keys
from .artifact.manifest import Manifest, load_manifest
from .artifact.signature import signature_check
from .errors import ArtifactError, UsageError, raise_all
from .machine_limits import reports_limits
from .progress import Progress
from .runtime.executor import Executor
from .runtime.runner import Runner
from .targets import TARGETS
from .targets.base_loader import Loader, LoadSettings, loader

if TYPE_CHECKING:  # only artifacts of several ranks need them
    from .ranks.following import LoadFacts
    from .ranks.processes import RankProcess, Torchrun
    from .runtime.train_step import TrainStep


@reports_limits()
def load(
    path: str | Path,
    verify_hashes: bool = True,
    progress: Progress | None = None,
    tune_process: bool = False,
    trust: Trust = None,
    fixed_width: bool = False,
    kv_memory: int | None = None,
) -> Runner:
    """Load the artifact at `path`. Its code runs with the rights of this process.

    verify_hashes  read every file and compare its sha256; sizes are compared in any case
    tune_process   change settings of the whole process to save GPU memory (cuda/process_memory.py)
    trust          files with public keys, one of which must have signed the artifact; None: no signature is asked for.
                   It is checked before anything but the manifest is opened
    fixed_width    run the largest program of each kind in every call. A sequence then has the same bits alone and
                   beside others, and a step of one sequence takes as long as one of all
    kv_memory      bytes of the KV cache's pages. None: as many as all slots can use, or on a GPU nine tenths of the
                   memory that it has left, if that is less. Sequences that do not fit together wait for each other

    Raises ArtifactError saying what is damaged, incomplete, not signed by a trusted key or not made for this machine,
    UsageError for keys that cannot be used, for `trust` without `verify_hashes` and for a `kv_memory` that no sequence
    fits into, MachineError where the machine has too little memory.
    """
    folder, progress = Path(path), progress or Progress()
    keys = read_trusted_keys(trust, verify_hashes)
    with progress.stage("read the manifest"):
        signed, contents = signature_check(folder, keys), hashlib.sha256()

        def check(data: bytes) -> None:
            contents.update(data)
            if signed is not None:
                signed(data)

        manifest = load_manifest(folder, check)
        if manifest.sizes.training is not None:
            raise ArtifactError(
                f"{folder}: is a training step and does not generate; use gptoss_export.load_train_step"
            )
        target = _target_of(manifest, folder)
        settings = LoadSettings(tune_process, kv_memory)
    with _started_ranks(manifest) as started:
        with progress.stage("check files"):
            target.begin(manifest, settings)
            if keys is None:
                _check_machine(target, manifest, folder)
            check_sizes(manifest.files, folder)
        # Code is hashed before it is loaded. Weights are hashed while they are copied, from the same pages.
        weights = manifest.weight_files()
        if verify_hashes:
            with progress.stage("hash the code"):
                check_hashes(manifest.files, folder, manifest.files.keys() - set(weights))
        if keys is not None:  # now, since a target reads files to find problems
            with progress.stage("check the machine"):
                _check_machine(target, manifest, folder)
        group = None
        if started is not None:
            with progress.stage("start the ranks"):
                from .ranks.starting import start_ranks  # it imports torch

                digest = contents.hexdigest()
                group = start_ranks(manifest, folder, digest, tune_process, kv_memory, fixed_width, started, progress)
                settings = replace(settings, agreed=group.agreed_pages, places=group.places)
    with ThreadPoolExecutor(1) as background:
        if verify_hashes:
            hashing = background.submit(check_hashes, manifest.files, folder, weights)
        try:
            executor = target.load(manifest.of_rank(0), folder, progress, settings)
        finally:  # of two errors, a changed file is the cause of the other
            if verify_hashes:
                with progress.stage("wait for the weights' hashes"):
                    hashing.result()
    executor.fixed_width = fixed_width
    if group is not None:
        from .ranks.leading import LeadingExecutor

        with progress.stage("wait for the other ranks"):
            group.wait_until_ready()
        executor = LeadingExecutor(executor, group)
    return Runner(manifest, folder, executor, progress.seconds)


@reports_limits()
def load_train_step(
    path: str | Path,
    verify_hashes: bool = True,
    progress: Progress | None = None,
    trust: Trust = None,
    seed: int = 0,
) -> TrainStep:
    """Load the artifact at `path`, of `build --program train-step`. Its code runs with the rights of this process.

    seed    what the LoRA factors are drawn with
    others  as `load` has them

    Raises as `load`, and ArtifactError for an artifact that generates.
    """
    from .runtime.train_step import TrainStep  # it imports torch

    folder, progress = Path(path), progress or Progress()
    keys = read_trusted_keys(trust, verify_hashes)
    with progress.stage("read the manifest"):
        manifest = load_manifest(folder, signature_check(folder, keys))
        if manifest.sizes.training is None:
            raise ArtifactError(f"{folder}: generates and has no training step; build one with --program train-step")
        target = _target_of(manifest, folder)
    with progress.stage("check files"):
        check_sizes(manifest.files, folder)
        if verify_hashes:
            check_hashes(manifest.files, folder, manifest.files.keys())
        _check_machine(target, manifest, folder)
    program, weights = target.load_training(manifest, folder, progress, LoadSettings(False, None))
    return TrainStep(manifest, folder, program, weights, seed)


def load_rank(facts: LoadFacts, rank: int, agreed: Callable[[int], int], places: tuple[int, ...]) -> Executor:
    """What a rank other than 0 computes with. Rank 0 has checked the files. Raises as `load`.

    agreed, places  of LoadSettings
    """
    folder = Path(facts.folder)

    def check(data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != facts.manifest_sha256:
            raise ArtifactError(f"{folder}: manifest.json was changed while it was loaded; load it again")

    manifest = load_manifest(folder, check)
    settings = LoadSettings(facts.tune_process, facts.kv_memory, agreed, places)
    executor = loader(manifest.target).load(manifest.of_rank(rank), folder, Progress(), settings)
    executor.fixed_width = facts.fixed_width
    return executor


def _target_of(manifest: Manifest, folder: Path) -> Loader:
    """The running half of the artifact's target. Raises ArtifactError where there is none."""
    if manifest.target not in TARGETS:
        raise ArtifactError(f"{folder}: built for target {manifest.target!r}, expected {', '.join(TARGETS)}")
    try:
        return loader(manifest.target)
    except UsageError as error:
        raise ArtifactError(f"{folder}: {error}") from error


@contextmanager
def _started_ranks(manifest: Manifest) -> Iterator[list[RankProcess] | Torchrun | None]:
    """The processes of the other ranks, which import torch beside the checks, or how those of torchrun are found. None:
    there is one rank. An error in this context ends the processes.

    In a process of torchrun for a rank other than 0 it does not return: it is that rank until rank 0 ends, and then
    ends the process.
    """
    ranks = manifest.sizes.ranks
    if ranks == 1:
        yield None
        return
    from .ranks.processes import connect_to_rank_0, killed_after_errors, start_children, torchrun

    given = torchrun()
    if given is None:
        children = start_children(ranks)
        with killed_after_errors(children):
            yield children
        return
    if given.ranks != ranks:
        raise UsageError(f"torchrun: found {given.ranks} processes, expected {ranks}, the ranks of the artifact")
    if given.rank:
        from .ranks.following import serve_rank  # it imports torch

        serve_rank(connect_to_rank_0(given), load_rank)
    yield given


def _check_machine(target: Loader, manifest: Manifest, folder: Path) -> None:
    raise_all(ArtifactError, f"{folder}: cannot run on this machine", target.problems(manifest, folder))
