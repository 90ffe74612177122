"""Every function of libtorch that is called, with the types of its arguments.

The functions are C functions that compiled programs call too, so that torch keeps them across versions. Sources, in
torch 2.13: torch/csrc/inductor/aoti_torch/c/shim.h (libtorch) and torch/csrc/inductor/aoti_runtime/interface.h (a
program's own library). A test compares the declarations with the headers of the installed torch. They were compared
with 2.11 to 2.15.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from dataclasses import dataclass
from typing import Any

from ..errors import MachineError, RunError
from .installation import Installation

_Handle, _NewHandle = c_void_p, ctypes.POINTER(c_void_p)
_Int64s = ctypes.POINTER(c_int64)

# Functions that return an error code, 0 for none.
LIBTORCH: Mapping[str, tuple[Any, ...]] = {
    "aoti_torch_create_tensor_from_blob_v2": (
        c_void_p, c_int64, _Int64s, _Int64s, c_int64, c_int32, c_int32, c_int32, _NewHandle, c_int32,
        ctypes.POINTER(c_uint8), c_int64,
    ),
    "aoti_torch_new_tensor_handle": (_Handle, _NewHandle),
    "aoti_torch_delete_tensor_object": (_Handle,),
    "aoti_torch_get_data_ptr": (_Handle, _NewHandle),
    "aoti_torch_get_dim": (_Handle, _Int64s),
    "aoti_torch_get_sizes": (_Handle, ctypes.POINTER(_Int64s)),
    "aoti_torch_get_dtype": (_Handle, ctypes.POINTER(c_int32)),
    "aoti_torch_is_contiguous": (_Handle, ctypes.POINTER(ctypes.c_bool)),
}  # fmt: skip
LIBTORCH_CUDA: Mapping[str, tuple[Any, ...]] = {
    "aoti_torch_create_cuda_stream_guard": (c_void_p, c_int32, _NewHandle),
    "aoti_torch_delete_cuda_stream_guard": (_Handle,),
}
PROGRAM: Mapping[str, tuple[Any, ...]] = {
    "AOTInductorModelContainerCreateWithDevice": (_NewHandle, c_size_t, c_char_p, c_char_p),
    "AOTInductorModelContainerRunSingleThreaded": (
        _Handle, _NewHandle, c_size_t, _NewHandle, c_size_t, c_void_p, c_void_p,
    ),
}  # fmt: skip
DTYPES = ("bfloat16", "float16", "float32", "int32", "int64", "uint8")
# Functions without arguments that return a number.
NUMBERS = (
    *(f"aoti_torch_dtype_{name}" for name in DTYPES),
    "aoti_torch_device_type_cpu", "aoti_torch_device_type_cuda", "aoti_torch_layout_strided",
)  # fmt: skip


def declared_functions(
    library: ctypes.CDLL, declared: Mapping[str, tuple[tuple[Any, ...], Any]], version: str
) -> dict[str, Callable[..., Any]]:
    """Functions of a loaded library by name, with the types of their arguments and results. Raises MachineError for
    those that it does not have."""
    missing = [name for name in declared if not hasattr(library, name)]
    if missing:
        raise MachineError(
            f"torch {version}: its library has no {', '.join(missing)}; install another version of torch"
        )
    found: dict[str, Callable[..., Any]] = {}
    for name, (arguments, result) in declared.items():
        function = found[name] = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return found


class Functions:
    """Functions of a loaded library that return an error code, by name. Raises MachineError for those that it does not
    have."""

    def __init__(self, library: ctypes.CDLL, declared: Mapping[str, tuple[Any, ...]], version: str) -> None:
        of_numbers = {name: (arguments, c_int32) for name, arguments in declared.items()}
        self._found = declared_functions(library, of_numbers, version)

    def __getitem__(self, name: str) -> Callable[..., int]:
        """The function itself, which returns an error code."""
        return self._found[name]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises RunError where it fails; torch prints the reason to stderr."""
        if error := self._found[name](*arguments):
            raise RunError(f"libtorch: {name} failed with error {error}; stderr says why")


@dataclass(frozen=True)
class CudaLibrary:
    """The library of torch for CUDA, and its functions of LIBTORCH_CUDA."""

    library: ctypes.CDLL
    functions: Functions


class Libtorch:
    """The libraries of an installed torch, loaded.

    functions  those of LIBTORCH
    cuda       None: only what a CPU needs was loaded
    numbers    what the functions of NUMBERS return
    dtypes     the names of dtypes by torch's numbers

    Raises MachineError where one cannot be loaded.
    """

    cuda: CudaLibrary | None = None

    def __init__(self, found: Installation, cuda: bool) -> None:
        if cuda and found.cuda is None:
            raise MachineError(
                f"torch {found.version}: was built without CUDA, and the artifact is for a GPU; install one for CUDA"
            )
        self.installation = found
        # The later ones need the earlier ones, wherever the search path of the process leads.
        libraries = [_load(found, name) for name in ("libc10.so", "libtorch_cpu.so")]
        self.functions = Functions(libraries[1], LIBTORCH, found.version)
        if cuda:
            libraries += [_load(found, name) for name in ("libc10_cuda.so", "libtorch_cuda.so")]
            self.cuda = CudaLibrary(libraries[3], Functions(libraries[3], LIBTORCH_CUDA, found.version))
        libraries.append(_load(found, "libtorch.so"))
        values = Functions(libraries[1], dict.fromkeys(NUMBERS, ()), found.version)
        self.numbers = {name: values[name]() for name in NUMBERS}
        self.dtypes = {self.numbers[f"aoti_torch_dtype_{name}"]: name for name in DTYPES}


def _load(found: Installation, name: str) -> ctypes.CDLL:
    """Load a library. Other threads go on meanwhile, which `ctypes.CDLL` may prevent."""
    path = found.library(name)
    system = ctypes.CDLL(None)
    system.dlopen.argtypes, system.dlopen.restype = (c_char_p, ctypes.c_int), c_void_p
    system.dlerror.restype = c_char_p
    handle = system.dlopen(str(path).encode(), os.RTLD_NOW | os.RTLD_GLOBAL)
    if handle is None:
        error = (system.dlerror() or b"").decode(errors="replace")
        raise MachineError(f"{path}: cannot be loaded ({error}); install torch again")
    return ctypes.CDLL(str(path), handle=handle)
