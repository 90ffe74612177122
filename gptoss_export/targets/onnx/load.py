"""The running half: an artifact to an executor."""

from __future__ import annotations

from pathlib import Path

from ...artifact.manifest import Manifest
from ...errors import UsageError
from ...progress import Progress
from ...runtime.executor import Executor
from ..base_loader import Loader, LoadSettings
from .model_files import ANY_ARCH, MODEL, PROBE
from .options import read_options
from .requirements import INSTALL, gpu_problems, runtime_problems


class OnnxLoader(Loader):
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found = []
        if manifest.archs != (ANY_ARCH,):
            found.append(f"arch: artifact is for {manifest.arch}, expected {ANY_ARCH}; build the artifact again")
        try:
            options = read_options(manifest.target_options)
            if options.portable and manifest.device != "cpu":
                found.append(
                    f"target_options: found portable on {manifest.device}, expected cpu; build the artifact again"
                )
        except ValueError as error:
            found.append(f"{error}; build the artifact again")
        found += [
            f"files: {name} is missing from the manifest; build the artifact again"
            for name in ((MODEL, PROBE) if manifest.device == "cuda" else (MODEL,))
            if name not in manifest.files
        ]
        found += [f"{problem}; {INSTALL[manifest.device]}" for problem in runtime_problems(manifest.device)]
        return found + (gpu_problems() if manifest.device == "cuda" else [])

    def load(self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings) -> Executor:
        if settings.kv_memory is not None:
            raise UsageError(
                "KV memory: found a size for an ONNX artifact, whose caches have the size of its build; leave it out, "
                "or build with another --max-batch or --max-context"
            )
        if manifest.device == "cuda":
            from .executor_cuda import load_cuda

            return load_cuda(manifest, folder, progress, settings.tune_process)
        from .executor_cpu import CpuExecutor
        from .model_cpu import load_model

        with progress.stage("load the model"):
            options = read_options(manifest.target_options)
            return CpuExecutor(manifest, load_model(manifest, folder / MODEL, options))


LOADER = OnnxLoader()
