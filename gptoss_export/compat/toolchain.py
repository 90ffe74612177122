"""The programs that a build calls: a C++ compiler and what torch and Triton call beside it.

They are tried before a build begins. What Inductor says when one is missing is long and comes late."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from ..errors import BuildError
from ..machine_limits import limit_in
from ..temporary_folder import TemporaryFolder
from .cpp import compile_library

# program -> package of Debian, and who calls it. A GPU's kernels are embedded with the programs of the second list.
_PROGRAMS = {"strip": "binutils", "openssl": "openssl"}  # this project; Inductor, to hash the headers of torch
_GPU_PROGRAMS = {"ld": "binutils", "objcopy": "binutils"}


def toolchain_problem(gpu: bool, triton_compiles: bool) -> tuple[str, str] | None:
    """What the build of AOTInductor lacks, and what to do; None where it has everything.

    gpu              the code is for a GPU
    triton_compiles  Triton uses this machine's GPU, for which it compiles a module in C

    Raises MachineError where the compiler fails since the disk is full or the memory too small.
    """
    programs = _PROGRAMS | (_GPU_PROGRAMS if gpu else {})
    if missing := [program for program in programs if shutil.which(program) is None]:
        packages = " ".join(sorted({programs[program] for program in missing}))
        return f"{', '.join(missing)}: not found in PATH; AOTInductor's build calls it", f"apt-get install {packages}"
    if triton_compiles and (problem := _c_problem()):
        return f"{problem}; Triton compiles C", "apt-get install gcc, or name a C compiler with CC"
    if problem := _cxx_problem(os.environ.get("CXX"), os.environ.get("PATH")):
        return f"{problem}; AOTInductor compiles C++", "apt-get install g++, or name a C++ compiler with CXX"
    return None


def links_dynamically(library: bytes) -> bool:
    """Whether a library takes the C++ standard library from the process. One with its own inside crashes there."""
    return any(name in library for name in (b"libstdc++.so", b"libc++.so"))


@functools.cache
def _cxx_problem(cxx: str | None, path: str | None) -> str | None:
    """What is wrong with the C++ compiler: CXX where it is set, else g++. Inductor takes the same. It is tried once for
    each value of CXX and PATH."""
    compiler = "g++" if cxx is None else cxx
    shown = compiler if cxx is None else f"CXX={cxx}"
    if shutil.which(compiler) is None:
        arguments = len(compiler.split()) > 1
        return f"{shown}: not found" + (" (CXX must be one program, without arguments)" if arguments else "")
    if compiler.split() != [compiler]:
        return f"{shown}: holds white space, which AOTInductor does not support"
    with TemporaryFolder() as folder:
        library = folder.path / "tried.so"
        try:
            compile_library(library, "int *made() { return new int; }")  # calls the standard library
        except BuildError as error:  # the command, then what the compiler says
            if (limit := limit_in(str(error))) is not None:
                raise limit from None
            lines = str(error).splitlines()[1:]
            return f"{shown}: cannot compile a library ({lines[0] if lines else 'it says nothing'})"
        except (OSError, subprocess.SubprocessError) as error:
            return f"{shown}: cannot be run ({error})"
        if not library.is_file():
            return f"{shown}: ends without an error and makes no library, expected a C++ compiler"
        if not links_dynamically(library.read_bytes()):
            return f"{shown}: does not link the C++ standard library, or statically, expected libstdc++ as a shared one"
    return None


def _c_problem() -> str | None:
    """What is wrong with the C compiler that Triton takes: CC where it is set, else gcc or clang."""
    compiler = os.environ.get("CC")
    if compiler is None:
        return None if shutil.which("gcc") or shutil.which("clang") else "gcc and clang: not found"
    return None if shutil.which(compiler) else f"CC={compiler}: not found"
