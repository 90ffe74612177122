"""The archs that kernels are launched for, and what each of them can do.

An arch is `sm_<number>`, such as sm_90 for compute capability 9.0. `INTERPRETER` stands for Triton's interpreter,
which runs kernels on a CPU in tests. A launch depends on its arguments and on the arch that it is given. It does not
depend on the machine or on the process that traces it.
"""

from __future__ import annotations

INTERPRETER = "interpreter"


def has_dependent_launch(arch: str) -> bool:
    """Whether a kernel may start before the one before it has ended: Hopper and later. See dependent_launch.py."""
    return arch != INTERPRETER and int(arch.removeprefix("sm_")) >= 90


def has_inline_assembly(arch: str) -> bool:
    """Whether kernels may contain PTX."""
    return arch != INTERPRETER


_SHARED_KIB = {INTERPRETER: 227, "sm_80": 163, "sm_87": 163, "sm_90": 227, "sm_100": 227, "sm_103": 227}


def shared_memory(arch: str) -> int:
    """Bytes of shared memory that a block may have; 99 KiB, as on the smallest, for an arch that is not listed.

    Source: CUDA programming guide, "Compute Capabilities"."""
    return 1024 * _SHARED_KIB.get(arch, 99)


def has_asynchronous_products(arch: str) -> bool:
    """Whether Triton begins tensor core products without waiting for their end (wgmma): Hopper alone."""
    return arch == "sm_90"


def has_large_products(arch: str) -> bool:
    """Whether a tensor core instruction serves four warps and reads its right operand from shared memory (wgmma of
    sm_90, tcgen05 of sm_100). Elsewhere each warp has both operands in its registers, and large tiles need more warps.
    """
    return arch in ("sm_90", "sm_100", "sm_103")
