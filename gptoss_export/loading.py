"""Loads an artifact: checks it against its manifest and this machine, and makes it ready to run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .artifact.files import check_hashes, check_sizes
from .artifact.manifest import load_manifest
from .errors import ArtifactError, UsageError, raise_all
from .progress import Progress
from .runtime.runner import Runner
from .targets import TARGETS
from .targets.base_loader import loader


def load(
    path: str | Path, verify_hashes: bool = True, progress: Progress | None = None, tune_process: bool = False
) -> Runner:
    """Load the artifact at `path`.

    verify_hashes  read every file and compare its sha256; sizes are compared in any case
    tune_process   change settings of the whole process to save GPU memory (runtime/cuda/memory.py)

    Raises ArtifactError saying what is damaged, incomplete or not made for this machine.
    """
    folder, progress = Path(path), progress or Progress()
    with progress.stage("check files"):
        manifest = load_manifest(folder)
        if manifest.target not in TARGETS:
            raise ArtifactError(f"{folder}: built for target {manifest.target!r}, expected {', '.join(TARGETS)}")
        try:
            target = loader(manifest.target)
        except UsageError as error:
            raise ArtifactError(f"{folder}: {error}") from error
        raise_all(ArtifactError, f"{folder}: cannot run on this machine", target.problems(manifest, folder))
        check_sizes(manifest.files, folder)
    # Code is hashed before it is loaded. Weights are hashed while they are copied, from the same pages.
    weights = manifest.weight_files()
    with ThreadPoolExecutor(1) as background:
        if verify_hashes:
            with progress.stage("hash the code"):
                check_hashes(manifest.files, folder, manifest.files.keys() - set(weights))
            hashing = background.submit(check_hashes, manifest.files, folder, weights)
        try:
            executor = target.load(manifest, folder, progress, tune_process)
        finally:  # of two errors, a changed file is the cause of the other
            if verify_hashes:
                with progress.stage("wait for the weights' hashes"):
                    hashing.result()
    return Runner(manifest, folder, executor, progress.seconds)
