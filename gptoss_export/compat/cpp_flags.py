"""Flags of the C++ compiler for code that leaves the machine: it names no path of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from .replace import replace

_MARK = "DGPTOSS_EXPORT_WITHOUT_PATHS"  # gives the code other names in Inductor's cache than code with paths


@contextmanager
def without_paths() -> Iterator[None]:
    """Inductor compiles C++ whose strings hold no folder of this machine.

    The names of Inductor's files are hashes of its flags. So the flags that hold folders are added behind its back:
    the same program has the same names whatever the folders are.

    Without it: messages of failed checks, and with them the library, hold the paths of torch's headers and of
    Inductor's cache. Since: torch 2.11. It can go when Inductor has an option for more flags of the compiler."""
    from torch._inductor import cpp_builder
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cflags, run = cpp_builder._get_optimization_cflags, cpp_builder.run_compile_cmd
    folders = {str(Path(torch.__file__).parent.parent): "site-packages", cache_dir(): "inductor"}
    maps = shlex.join(f"-ffile-prefix-map={folder}={name}" for folder, name in folders.items())

    def with_mark(*arguments: Any, **options: Any) -> Any:
        flags, linking = cflags(*arguments, **options)
        return [*flags, _MARK], linking

    def run_with_maps(cmd_line: str, cwd: str) -> None:
        run(f"{cmd_line} {maps}", cwd)

    with ExitStack() as stack:
        replace(stack, cpp_builder, "_get_optimization_cflags", with_mark)
        replace(stack, cpp_builder, "run_compile_cmd", run_with_maps)
        yield
