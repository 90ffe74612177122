"""Finds once, not at every call, which of a kernel's arguments it reads and writes.

While a program is compiled torch asks that four times for every call of a kernel, and each time it makes the kernel's Triton IR
anew and walks through it. A model calls the same few kernels in every layer: of the 2,236 questions of a 20b's decode step and two
chunks 29 differ. Asked once a kind, they take 1 s in place of 80 to 90 on two cores, and the code is the same, to the byte.

The answer depends on the kernel, on the values of its scalars, on the dtypes of its tensors and on the GPU that is compiled for, on
nothing else: tensors of a trace are fake, and replaced by others of their dtype before the IR is made. Calls with anything else
(real tensors, TMA descriptors) are asked for as ever.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from .replace import replace

_NAMES = ("identify_accessed_tensors", "identify_mutated_tensors")  # since torch 2.12, before


@contextmanager
def cached_mutation_analysis() -> Iterator[None]:
    """Until the end torch remembers what it found of a kernel; enter it anew for another arch."""
    from torch._higher_order_ops import triton_kernel_wrap

    with ExitStack() as stack:
        for name in _NAMES:
            if ask := getattr(triton_kernel_wrap, name, None):
                replace(stack, triton_kernel_wrap, name, _remembering(ask))
        yield


def _remembering(ask: Any) -> Any:
    known: dict[Hashable, Any] = {}

    def answer(kernel: Any, kwargs: dict[str, Any], tma_descriptor_metadata: Mapping[str, Any]) -> Any:
        kind = None if tma_descriptor_metadata else _kind(kernel, kwargs)
        if kind is None:
            return ask(kernel, kwargs, tma_descriptor_metadata)
        if kind not in known:
            known[kind] = ask(kernel, kwargs, tma_descriptor_metadata)
        return copy.deepcopy(known[kind])  # torch 2.11 hands out a list

    return answer


def _kind(kernel: Any, kwargs: Mapping[str, Any]) -> Hashable:
    """What tells calls apart whose answers can differ; None where that is not known."""
    from torch._inductor.ir import TensorBox
    from torch._subclasses.fake_tensor import FakeTensor
    from triton.runtime.autotuner import Autotuner

    if isinstance(kernel, Autotuner):  # made anew for every call with a number of warps; its first configuration is what is asked of
        kernel, kwargs = kernel.fn, {**kwargs, **(kernel.configs[0].kwargs if kernel.configs else {})}
    kinds: list[tuple[str, type | None, Hashable]] = []
    for name, value in kwargs.items():
        if isinstance(value, (FakeTensor, TensorBox)):
            kinds.append((name, None, value.dtype))
        elif value is None or isinstance(value, (bool, int, float, str)):
            kinds.append((name, type(value), value))
        else:
            return None
    return kernel, tuple(kinds)
