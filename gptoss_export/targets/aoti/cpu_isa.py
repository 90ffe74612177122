"""Which CPU instructions compiled code may use: a level, in place of all that the building machine has.

    level      instructions                         GCC's name (x86-64 psABI, micro-architecture levels)
    DEFAULT    what every 64-bit x86 has            x86-64
    AVX2       AVX2, FMA, F16C, BMI                 x86-64-v3
    AVX512     AVX-512 F, BW, CD, DQ, VL as well    x86-64-v4

A machine runs code of its own level and of those below. Levels are torch's names (torch.backends.cpu.get_cpu_capability),
and an artifact's arch is the machine and the level: x86_64-AVX2. Other machines than x86 have one level, and code for it is
what the compiler makes of `native`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...compat.replace import replace

_X86 = "x86_64"
_MARCH = {"DEFAULT": "x86-64", "AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
LEVELS = tuple(_MARCH)
GLUE = "AVX2"  # for what runs on the CPU beside a GPU


def here() -> str:
    """The arch of this machine."""
    return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"


def archs() -> tuple[str, ...]:
    """Archs that can be compiled for here: those that this machine can run, the highest first."""
    machine, _, level = here().partition("-")
    if machine != _X86 or level not in LEVELS:
        return (here(),)
    return tuple(f"{machine}-{name}" for name in reversed(LEVELS) if runs(f"{machine}-{name}", here()))


def runs(built_for: str, on: str) -> bool:
    """Whether a machine of arch `on` has all instructions of `built_for`."""
    machine, _, level = built_for.partition("-")
    machine_here, _, level_here = on.partition("-")
    if level in LEVELS and level_here in LEVELS:
        return machine == machine_here and LEVELS.index(level) <= LEVELS.index(level_here)
    return built_for == on


def rank(arch: str) -> int:
    """Higher for more instructions."""
    level = arch.partition("-")[2]
    return LEVELS.index(level) if level in LEVELS else 0


@contextmanager
def instructions(level: str) -> Iterator[None]:
    """Compile with the instructions of a level alone, where this machine has levels."""
    if platform.machine() != _X86 or level not in LEVELS:
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
        replace(stack, cpp_builder, "_get_optimization_cflags", with_level)
        yield
