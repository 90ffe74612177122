"""A folder that serves as CUDA_HOME: headers and libraries to link the host's part of GPU code, without a CUDA toolkit.

The headers are those that Triton and the package nvidia-cuda-cccl bring. The libraries hold nothing but names: the
real ones are there when the code is loaded.

Without it: Inductor cannot compile and link the C++ of a CUDA program on a machine without a toolkit. Since: torch
2.11. It can go when Inductor compiles the host's part without CUDA's headers."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ..errors import BuildError
from .cpp import compile_library
from .replace import replace
from .versions import SUPPORTED, installed

_SHIMS = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "inductor" / "aoti_torch"


@contextmanager
def linking_without_toolkit() -> Iterator[None]:
    """Inductor uses the folder as CUDA_HOME. Raises BuildError where headers are missing."""
    from torch.utils import cpp_extension

    with ExitStack() as stack:
        replace(stack, cpp_extension, "CUDA_HOME", str(_cuda_home()))
        yield


def header_problem() -> str | None:
    """What is missing to compile the host's part of GPU code."""
    if _nv_headers() is None:
        return "CUDA's header nv/target not found; it comes with the package nvidia-cuda-cccl or a CUDA toolkit"
    return None


def _cuda_home() -> Path:
    """The folder, in Inductor's cache. Its path is part of the names of Inductor's files, so that it is always the
    same."""
    import triton
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    headers, nv = Path(triton.__file__).parent / "backends" / "nvidia" / "include", _nv_headers()
    if nv is None:
        raise BuildError(f"code for a GPU cannot be compiled here: {header_problem()}")
    key = repr((headers, nv, *map(installed, SUPPORTED)))
    home = Path(cache_dir()) / f"cuda-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=home.parent))
    (partial / "include").mkdir()
    for entry in headers.iterdir():
        (partial / "include" / entry.name).symlink_to(entry)
    if not (partial / "include" / "nv").exists():
        (partial / "include" / "nv").symlink_to(nv)
    (partial / "lib64").mkdir()
    symbols: dict[str, set[str]] = {
        "libcuda.so.1": _declared(headers / "cuda.h", r"\bcu[A-Z]\w+"),
        "libtorch_cuda.so": _declared(_SHIMS, r"\baoti_torch_\w+"),
        "libc10_cuda.so": set(),
    }
    for library, names in symbols.items():
        file = partial / "lib64" / library.removesuffix(".1")
        compile_library(file, _source_with(names), f"-Wl,-soname,{library}")
    try:
        partial.rename(home)
    except OSError:  # another build was first
        shutil.rmtree(partial)
    return home


def _nv_headers() -> Path | None:
    """The folder nv of CUDA's headers, which Triton does not bring."""
    from torch.utils import cpp_extension

    folders = [Path(folder) / "nvidia" / "cu13" / "include" for folder in sys.path]
    if cpp_extension.CUDA_HOME:
        folders.append(Path(cpp_extension.CUDA_HOME) / "include")
    return next((folder / "nv" for folder in folders if (folder / "nv" / "target").is_file()), None)


def _declared(location: Path, pattern: str) -> set[str]:
    """The names in a header, or in all headers of a folder."""
    files = sorted(location.rglob("*.h")) if location.is_dir() else [location]
    return {name for file in files for name in re.findall(pattern, file.read_text(encoding="utf-8"))}


def _source_with(symbols: set[str]) -> str:
    """C++ source of a library that has these symbols."""
    lines = "".join(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in sorted(symbols))
    return f'asm(R"(.text\n{lines})");' if lines else ""
