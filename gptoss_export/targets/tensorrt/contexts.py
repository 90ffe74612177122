"""Engines that are ready to run, and the cache of what is compiled for that.

TensorRT for RTX finishes an engine on the machine that runs it: it compiles the engine's kernels when a context is
made. That makes loading slow (docs/benchmarks.md). Its runtime cache holds the compiled kernels. A build on the GPU
that the artifact is for makes all contexts once and stores the cache with the engines. TensorRT accepts the cache on
the same kind of GPU, with the same driver or a newer one of its major version. Everywhere else, and where the build had
no GPU, loading compiles.

The contexts share their scratch memory, since one stream runs them one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError
from .edition import Edition

CACHE = "engines/runtime.cache"


class Contexts:
    """An execution context for each engine in an artifact's folder, by key, with its kernels compiled.

    stored  the runtime cache that the build stored, if any

    Contexts need no memory to be compiled, but `allocate` must be called before they run. `cache_accepted` says whether
    TensorRT accepted `stored` (None: there was none). If not, everything is compiled again, and loading is slow.

    Raises ArtifactError naming the engine that cannot be loaded or run here.
    """

    def __init__(
        self, edition: Edition, folder: Path, keys: Iterable[str], device: torch.device, stored: bytes | None = None
    ) -> None:
        trt = edition.module
        torch.cuda.synchronize(device)  # makes the CUDA context that everything is loaded into
        self._device, self._edition = device, edition
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._cache: Any = None
        self._stored = stored
        self.cache_accepted: bool | None = None
        self.engines: dict[str, Any] = {}  # contexts need their engines
        self._contexts: dict[str, Any] = {}
        self._scratch: torch.Tensor | None = None
        for key in keys:
            path = folder / "engines" / f"{key}.engine"
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise ArtifactError(f"{path}: {edition} cannot load it; build the artifact again")
            context = engine.create_execution_context(self._config(engine))
            if context is None:
                raise ArtifactError(f"{path}: {edition} cannot run it on {torch.cuda.get_device_name(device)}")
            self.engines[key] = engine
            self._contexts[key] = context

    def allocate(self) -> None:
        """Give the contexts their scratch memory. Raises ArtifactError where TensorRT does not accept it."""
        size = max((engine.device_memory_size_v2 for engine in self.engines.values()), default=0)
        self._scratch = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
        for key, context in self._contexts.items():
            if context.set_device_memory(self._scratch.data_ptr(), size) is False:  # some versions return None
                raise ArtifactError(f"engine {key}: {self._edition} does not accept {size} bytes of scratch memory")

    def __getitem__(self, key: str) -> Any:
        return self._contexts[key]

    def cache(self) -> bytes | None:
        """The runtime cache, to be stored as CACHE; None for an edition that compiles everything when it builds.

        Raises ArtifactError where TensorRT does not return it.
        """
        if self._cache is None:
            return None
        blob = self._cache.serialize()
        if blob is None:
            raise ArtifactError(f"{CACHE}: {self._edition} does not return what it compiled")
        return bytes(blob)

    def _config(self, engine: Any) -> Any:
        trt = self._edition.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._edition.compiles_at_load:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                if self._stored is not None:
                    # Refused where the GPU or its driver is another one; then everything is compiled here.
                    self.cache_accepted = bool(self._cache.deserialize(self._stored))
                    self._stored = None
            config.set_runtime_cache(self._cache)
        return config
