"""Programmatic dependent launch: a kernel starts before the kernel before it has ended (Hopper and later).

The programs of a kernel may start when each program of the kernel before has executed
`griddepcontrol.launch_dependents` or has ended. What a kernel does before `griddepcontrol.wait` overlaps with the
kernel before. At batch 1 this is the loading of its weights, which no kernel writes. The wait ends when the kernel
before has ended and its results are visible. That kernel has waited too, so the results of all earlier kernels are
visible.

A kernel whose name ends in `_pdl` keeps these rules. The name is how gptoss_export/cuda/early_launch.py selects
the kernels to launch early.
  - Every program waits before it reads what an earlier kernel of the step wrote, and before its first store.
  - A kernel may call `wait_then_let_next_start`: the next kernel starts only after this kernel's own wait. Then the
    next kernel may read, before its wait, what the kernel before this one has written.

The functions return 0. The caller adds it to the pointers that it reads or writes after the wait, so that the
compiler cannot move these accesses before the wait. The assembly is declared pure: torch assumes that a kernel with
any other inline assembly writes all of its arguments, and copies them. The 0 is a multiple of 16, so that Triton
still sees that the pointers are aligned.

With EARLY = False (`arch.has_dependent_launch`) the functions do nothing. In a kernel that was launched in the
ordinary way the instructions have no effect.

Source: CUDA programming guide, "Programmatic Dependent Launch"; PTX ISA, griddepcontrol.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def let_next_start(EARLY: tl.constexpr):
    """Let the kernel after this one start. Returns 0."""
    zero = 0
    if EARLY:
        zero = 16 * tl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=True, pack=1
        )
    return zero


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    """Wait until the kernel before this one has written everything. Returns 0."""
    zero = 0
    if EARLY:
        zero = 16 * tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=True, pack=1
        )
    return zero


@triton.jit
def wait_then_let_next_start(EARLY: tl.constexpr):
    """`wait_for_previous`, then `let_next_start`. Returns 0."""
    zero = 0
    if EARLY:
        zero = 16 * tl.inline_asm_elementwise(
            "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.u32 $0, 0;",
            "=r",
            [],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return zero
