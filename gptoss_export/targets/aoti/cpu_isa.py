"""Which CPU instructions compiled code may use: a level, in place of all that the building machine has.

    level      instructions                         GCC's name (x86-64 psABI, micro-architecture levels)
    DEFAULT    what every 64-bit x86 has            x86-64
    AVX2       AVX2, FMA, F16C, BMI                 x86-64-v3
    AVX512     AVX-512 F, BW, CD, DQ, VL as well    x86-64-v4

A machine runs code of its own level and of those below. Levels are torch's names
(torch.backends.cpu.get_cpu_capability, which a test compares), and an artifact's arch is the machine and the level:
x86_64-AVX2. Other machines than x86 have one level, and code for it is what the compiler makes of `native`."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

X86 = "x86_64"
LEVELS = ("DEFAULT", "AVX2", "AVX512")
_AVX2 = {"avx2", "fma"}
_NEEDED = {"DEFAULT": set(), "AVX2": _AVX2, "AVX512": {*_AVX2, "avx512vl", "avx512bw", "avx512dq"}}
HOST_LEVEL = "AVX2"  # of the host's part of code for a GPU


def current_arch() -> str:
    """The arch of this machine."""
    return f"{platform.machine()}-{_level()}"


def _level() -> str:
    """The level of this machine, as torch finds it: ATEN_CPU_CAPABILITY, or what the CPU has."""
    if platform.machine() != X86:
        import torch  # it has names of its own for other machines

        return torch.backends.cpu.get_cpu_capability()
    wanted = os.environ.get("ATEN_CPU_CAPABILITY", "").upper()
    if wanted in LEVELS:
        return wanted
    return next((level for level in reversed(LEVELS) if _NEEDED[level] <= _flags()), LEVELS[0])


@cache
def _flags() -> frozenset[str]:
    """The names that Linux has for what the CPU can do."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def archs() -> tuple[str, ...]:
    """Archs that can be compiled for here: those that this machine can run, the highest first."""
    machine, _, level = current_arch().partition("-")
    if machine != X86 or level not in LEVELS:
        return (current_arch(),)
    return tuple(f"{machine}-{name}" for name in reversed(LEVELS) if runs(f"{machine}-{name}", current_arch()))


def runs(built_for: str, on: str) -> bool:
    """Whether a machine of arch `on` has all instructions of `built_for`."""
    machine, _, level = built_for.partition("-")
    own_machine, _, own_level = on.partition("-")
    if level in LEVELS and own_level in LEVELS:
        return machine == own_machine and LEVELS.index(level) <= LEVELS.index(own_level)
    return built_for == on


def rank(arch: str) -> int:
    """Higher for more instructions."""
    level = arch.partition("-")[2]
    return LEVELS.index(level) if level in LEVELS else 0
