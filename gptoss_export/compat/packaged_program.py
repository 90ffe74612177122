"""A program of an AOTInductor package: loading it and calling it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..lending import Lending

# By code and device. A process cannot unload compiled code: a thread that has called it holds a string of the library
# until the thread ends. Two runners never share a program, so that each can run in a thread of its own.
_PROGRAMS: Lending[Any] = Lending()


class PackagedProgram:
    """The program called `program` in the package at `package`, loaded for `device`.

    code  identifies the contents of the package, such as their sha256

    torch unpacks the code into a new folder beside the package. Nothing needs the files any more when this returns.
    Raises RuntimeError where torch refuses the package.

    Name: torch._C._aoti.AOTIModelPackageLoader. Without it: torch._inductor.aoti_load_package does the same, but
    imports Inductor and Triton first, which takes longer than everything else of a start. Since: torch 2.6. It can go
    when the public function imports no compiler."""

    def __init__(self, package: Path, code: str, program: str, device: torch.device) -> None:
        self._loader = _PROGRAMS.lend(self, (code, program, str(device)), partial(_load, package, program, device))

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call the program. Raises RuntimeError where it fails."""
        return self._loader.run(list(inputs))


def _load(package: Path, program: str, device: torch.device) -> Any:
    index = (device.index or 0) if device.type == "cuda" else -1
    single_threaded, runners = True, 1
    folder = f"{program}/"  # torch takes all folders that begin with the name: decode_16 for decode_1
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(package.parent)  # torch reads it, and takes no folder
    try:
        return torch._C._aoti.AOTIModelPackageLoader(str(package), folder, single_threaded, runners, index)
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
