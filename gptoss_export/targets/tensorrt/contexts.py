"""Engines, ready to run, and the cache of what is compiled for that.

TensorRT for RTX finishes an engine on the machine that runs it: it compiles the kernels when a context is made, a
quarter of a second each. Its cache holds them. A build on the GPU that the artifact is for makes all contexts
once and stores the cache with the engines (a 20b loads in 0.1 s in place of 3 s). TensorRT takes it on the same kind of
GPU with that driver or a newer one of its major version; elsewhere, and where the build had no GPU, loading compiles.

Contexts share scratch memory, since one stream runs them one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError
from .edition import Flavour

CACHE = "engines/runtime.cache"


class Contexts:
    """An execution context for each engine of an artifact's folder, by key, and the kernels compiled for them.

    stored: what was compiled at build, if anything. `taken` says afterwards whether TensorRT took it (None: there was
    none); where it did not, all is compiled again, which is what a slow load comes from.

    To run, contexts have to be given scratch memory (`allocate`); to be compiled they need none.
    Raises ArtifactError naming the engine that cannot be loaded or run here.
    """

    def __init__(
        self, flavour: Flavour, folder: Path, keys: Iterable[str], device: torch.device, stored: bytes | None = None
    ) -> None:
        trt = flavour.module
        torch.cuda.synchronize(device)  # makes the CUDA context that everything is loaded into
        self._device, self._told = device, f"{flavour.name} {flavour.version}"
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._cache: Any = None
        self._stored = stored
        self.taken: bool | None = None
        self.engines: dict[str, Any] = {}  # contexts need theirs
        self._contexts: dict[str, Any] = {}
        self._scratch: torch.Tensor | None = None
        for key in keys:
            path = folder / "engines" / f"{key}.engine"
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise ArtifactError(f"{path}: {self._told} cannot load it; build the artifact again")
            context = engine.create_execution_context(self._config(flavour, engine))
            if context is None:
                raise ArtifactError(f"{path}: {self._told} cannot run it on {torch.cuda.get_device_name(device)}")
            self.engines[key] = engine
            self._contexts[key] = context

    def allocate(self) -> None:
        """Give the contexts the memory that they work in. Raises ArtifactError where TensorRT does not take it."""
        size = max((engine.device_memory_size_v2 for engine in self.engines.values()), default=0)
        self._scratch = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
        for key, context in self._contexts.items():
            if context.set_device_memory(self._scratch.data_ptr(), size) is False:  # None where it does not say
                raise ArtifactError(f"engine {key}: {self._told} does not take {size} bytes of scratch memory")

    def __getitem__(self, key: str) -> Any:
        return self._contexts[key]

    def cache(self) -> bytes | None:
        """What was compiled, to be stored as CACHE; None for a TensorRT that compiles all of it at build.

        Raises ArtifactError where TensorRT does not give it.
        """
        if self._cache is None:
            return None
        blob = self._cache.serialize()
        if blob is None:
            raise ArtifactError(f"{CACHE}: {self._told} does not give what it compiled")
        return bytes(blob)

    def _config(self, flavour: Flavour, engine: Any) -> Any:
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            flavour.module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if flavour.compiles_at_load:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                if self._stored is not None:
                    # Refused where the GPU or its driver is another one: then all is compiled here.
                    self.taken = bool(self._cache.deserialize(self._stored))
                    self._stored = None
            config.set_runtime_cache(self._cache)
        return config
