"""Flags of the C++ compiler for code that leaves the machine: it names no path of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from .replace import replace


@contextmanager
def without_paths() -> Iterator[None]:
    """Inductor compiles C++ whose strings hold no folder of this machine.

    Without it: messages of failed checks, and with them the library, hold the paths of torch's headers and of
    Inductor's cache. Since: torch 2.11. It can go when Inductor has an option for more flags of the compiler."""
    from torch._inductor import cpp_builder
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cflags = cpp_builder._get_optimization_cflags
    folders = {str(Path(torch.__file__).parent.parent): "site-packages", cache_dir(): "inductor"}
    added = [shlex.quote(f"ffile-prefix-map={folder}={name}") for folder, name in folders.items()]

    def with_flags(*arguments: Any, **options: Any) -> Any:
        flags, linking = cflags(*arguments, **options)
        return [*flags, *added], linking

    with ExitStack() as stack:
        replace(stack, cpp_builder, "_get_optimization_cflags", with_flags)
        yield
