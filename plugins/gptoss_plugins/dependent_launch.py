"""What a kernel does so that it may be launched before the one before it has ended (Hopper and later).

With programmatic dependent launch a kernel's programs start while the kernel before still runs, as soon as
all of that one's programs have said `griddepcontrol.launch_dependents` or ended. What it does before
`griddepcontrol.wait` so overlaps: at batch 1 the loads of its weights, which nobody writes. The wait ends
when the kernel before has ended and its results are visible; since that one waited too, everything earlier
has.

Rules, which a kernel whose name ends in `_pdl` promises to keep (gptoss_export/runtime/dependent_launch.py
goes by the name):
  - every program waits before it reads what an earlier kernel of the step wrote, and before its first store;
  - a kernel that lets the next one start only after its own wait (`wait_then_let_next_start`) thereby lets
    it read, before its wait, what the kernel before last has written.

The functions return 0, to be added to what must not be used before: to the pointers that are read or
written after a wait. They are assembly that is called pure, because torch takes a kernel with any other for
one that writes all its arguments, and copies them; so their place is where their result is used. It is a
multiple of 16, or Triton would no longer see that the pointers are aligned.

`EARLY` is False on older GPUs and in Triton's interpreter: then they do nothing. They also do nothing where
the launch was an ordinary one.

CUDA programming guide, "Programmatic Dependent Launch"; PTX ISA, griddepcontrol.
"""

from __future__ import annotations

import triton
import triton.language as tl


def early(arch: str) -> bool:
    """EARLY for `arch`, such as sm_90."""
    return not triton.knobs.runtime.interpret and int(arch.removeprefix("sm_")) >= 90


@triton.jit
def let_next_start(EARLY: tl.constexpr):
    zero = 0
    if EARLY:
        zero = 16 * tl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=True, pack=1
        )
    return zero


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    zero = 0
    if EARLY:
        zero = 16 * tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=True, pack=1
        )
    return zero


@triton.jit
def wait_then_let_next_start(EARLY: tl.constexpr):
    zero = 0
    if EARLY:
        zero = 16 * tl.inline_asm_elementwise(
            "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.u32 $0, 0;",
            "=r", [], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return zero
