"""A plugin's kernel between engines: the CUDA driver loads its cubin and launches it."""

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
_DEFAULT_SHARED = 48 << 10  # bytes that a kernel may have without that attribute


class LaunchedKernel:
    """A kernel, loaded into the current CUDA context, which must be `device`'s. It is unloaded with this object.

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
        """Enqueue the kernel with these addresses. Raises RunError with the driver's error."""
        count, size = len(arguments), ctypes.sizeof(ctypes.c_void_p)
        values = (ctypes.c_void_p * count)(*arguments)
        pointers = (ctypes.c_void_p * count)(*(ctypes.addressof(values) + size * index for index in range(count)))
        spec = self._spec
        grid, block = spec.grid, (spec.threads, 1, 1)
        launch = (self._function, *grid, *block, spec.shared, stream, ctypes.addressof(pointers), 0)
        try:
            _call(self._driver, "cuLaunchKernel", *launch)
        except RunError as error:
            raise RunError(f"kernel {spec.function}: {error}") from None


def _call(driver: Any, function: str, *arguments: Any) -> Any:
    error, *results = getattr(driver, function)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RunError(f"CUDA driver: {function} failed with {error.name}")
    return results[0] if results else None


def _unload(driver: Any, module: Any, device: torch.device) -> None:
    """Unload a module. Errors are ignored, since a finalizer has no caller. During a capture of the current stream the
    module stays loaded, since unloading would end the capture."""
    if not torch.cuda.is_current_stream_capturing():
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # the kernel may still run
            driver.cuModuleUnload(module)
