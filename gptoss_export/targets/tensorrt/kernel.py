"""A plugin's kernel between engines: its cubin, loaded and launched by the CUDA driver."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError, RunError
from .schedule import PluginSpec

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEFAULT_SHARED = 48 << 10


class Kernel:
    """Loaded into the current CUDA context, which is `device`'s; unloaded when nobody holds it any more.

    Raises ArtifactError naming the file that the driver does not load.
    """

    def __init__(self, path: Path, spec: PluginSpec, device: torch.device) -> None:
        from cuda.bindings import driver

        self._driver, self._spec = driver, spec
        try:
            module = _call(driver, "cuModuleLoadData", path.read_bytes())
            # Not at the end of the process, where the driver may be gone already.
            weakref.finalize(self, _unload, driver, module, device).atexit = False
            self._function = _call(driver, "cuModuleGetFunction", module, spec.function.encode())
            if spec.shared > _DEFAULT_SHARED:
                attribute = driver.CUfunction_attribute(_MAX_DYNAMIC_SHARED)
                _call(driver, "cuFuncSetAttribute", self._function, attribute, spec.shared)
        except RunError as error:
            raise ArtifactError(f"{path}: cannot be loaded ({error})") from None

    def launch(self, arguments: Sequence[int], stream: int) -> None:
        """Enqueue it with these addresses. Raises RunError with what the driver says."""
        values = (ctypes.c_void_p * len(arguments))(*arguments)
        size = ctypes.sizeof(ctypes.c_void_p)
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(values) + size * i for i in range(len(arguments))))
        spec = self._spec
        try:
            _call(
                self._driver, "cuLaunchKernel", self._function, *spec.grid, spec.threads, 1, 1, spec.shared, stream,
                ctypes.addressof(pointers), 0,
            )  # fmt: skip
        except RunError as error:
            raise RunError(f"kernel {spec.function}: {error}") from None


def _call(driver: Any, function: str, *arguments: Any) -> Any:
    error, *results = getattr(driver, function)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RunError(f"CUDA driver: {function} failed with {error.name}")
    return results[0] if results else None


def _unload(driver: Any, module: Any, device: torch.device) -> None:
    """Errors have nobody to go to here. Unloading would end a capture that is under way: then the module stays."""
    if not torch.cuda.is_current_stream_capturing():
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # what was enqueued last may still run
            driver.cuModuleUnload(module)
