"""A program of an AOTInductor package: loading its library and calling it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import ArtifactError, RunError
from ..lending import Lending
from .interface import PROGRAM, Functions, Libtorch
from .tensor_handle import TensorHandle, given_away

# By code and device. A process cannot unload compiled code, and two runners never share a program, so that each can run
# in a thread of its own.
_PROGRAMS: Lending[_Loaded] = Lending()


class _Loaded:
    """A program's library, and the model in it.

    The file of the library can be removed afterwards. Raises ArtifactError where it cannot be loaded.
    """

    def __init__(self, library: Libtorch, path: Path, device: str) -> None:
        try:
            code = ctypes.CDLL(str(path))
        except OSError as error:
            raise ArtifactError(f"cannot be loaded: {error}") from None
        self.functions = Functions(code, PROGRAM, library.installation.version)
        model = ctypes.c_void_p()
        create = self.functions["AOTInductorModelContainerCreateWithDevice"]
        if create(ctypes.byref(model), 1, device.encode(), str(path.parent).encode()):
            raise ArtifactError("cannot be loaded; stderr says why")
        self.model = model


class Program:
    """The program called `name`, whose library is at `path`, loaded for `device` (`cpu` or `cuda:0`).

    code  identifies the contents of the package, such as their sha256

    Raises ArtifactError where it cannot be loaded.
    """

    def __init__(self, library: Libtorch, path: Path, code: str, name: str, device: str, outputs: int) -> None:
        self._loaded = _PROGRAMS.lend(self, (code, name, device), partial(_Loaded, library, path, device))
        self._library, self._name, self._outputs = library, name, outputs

    def run(self, inputs: Sequence[TensorHandle], stream: int | None) -> list[TensorHandle]:
        """Call the program, on a GPU on a stream. Raises RunError where it fails."""
        given, made = given_away(inputs), (ctypes.c_void_p * self._outputs)()
        run = self._loaded.functions["AOTInductorModelContainerRunSingleThreaded"]
        if run(self._loaded.model, given, len(inputs), made, self._outputs, stream, None):
            raise RunError(f"program {self._name} failed; stderr says why")
        return [TensorHandle(self._library, handle or 0) for handle in made]
