"""Limits compiled C++ code to the instructions of a CPU level, in place of all that the building machine has."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .replace import replace

_X86 = "x86_64"
_MARCH = {"DEFAULT": "x86-64", "AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}  # GCC's names of the levels


@contextmanager
def cpu_instructions(level: str) -> Iterator[None]:
    """Inductor compiles with the instructions of `level` (DEFAULT, AVX2 or AVX512) alone, where this machine has
    levels.

    Without it: Inductor compiles with -march=native and with the widest vectors of the building machine, and the code
    ends with an illegal instruction on a lesser CPU. Since: torch 2.11. It can go when Inductor has an option for the
    level of vectors and of -march."""
    if platform.machine() != _X86 or level not in _MARCH:
        yield
        return
    from torch._inductor import cpp_builder, cpu_vec_isa

    kinds = {"AVX2": cpu_vec_isa.VecAVX2, "AVX512": cpu_vec_isa.VecAVX512}
    vectors = [kinds[level]()] if level in kinds else []
    cflags = cpp_builder._get_optimization_cflags

    def with_level(*arguments: Any, **options: Any) -> Any:
        flags, linking = cflags(*arguments, **options)
        return [f"march={_MARCH[level]}" if flag == "march=native" else flag for flag in flags], linking

    with ExitStack() as stack:
        replace(stack, cpu_vec_isa, "valid_vec_isa_list", lambda: list(vectors))
        # Otherwise a process compiles its first program for AVX512_BF16 too, where the building machine has it.
        replace(stack, cpu_vec_isa.VecAVX512, "build_arch_flags", lambda vector: vector._arch_flags)
        replace(stack, cpp_builder, "_get_optimization_cflags", with_level)
        yield
