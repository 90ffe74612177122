"""Caches which arguments of a Triton kernel are read and written.

torch analyses a kernel four times for each of its calls while a program is compiled, and each time it makes the
kernel's Triton IR again. A model calls the same few kernels in every layer, so that most analyses are repeated.

The answer depends on the kernel, the values of its scalars, the dtypes of its tensors and the GPU that is compiled
for, and on nothing else: tensors of a trace are fake, and torch replaces them by others of their dtype before it
makes the IR. Calls with anything else (real tensors, TMA descriptors) are analysed each time.

Without it: a build takes a third longer and gives the same code. Since: torch 2.11. It can go when torch caches the
analysis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import CompatibilityError
from .replace import replace

NAMES = ("identify_accessed_tensors", "identify_mutated_tensors")  # since torch 2.12; in torch 2.11


@contextmanager
def cached_mutation_analysis() -> Iterator[None]:
    """torch remembers its analyses until the end. Enter it again for another arch.

    Raises CompatibilityError where torch's analysis has none of the known names.
    """
    from torch._higher_order_ops import triton_kernel_wrap

    known = [name for name in NAMES if hasattr(triton_kernel_wrap, name)]
    if not known:
        raise CompatibilityError(
            f"torch._higher_order_ops.triton_kernel_wrap has none of {', '.join(NAMES)}; install a supported torch"
        )
    with ExitStack() as stack:
        for name in known:
            replace(stack, triton_kernel_wrap, name, caching(getattr(triton_kernel_wrap, name)))
        yield


def caching(analyse: Callable[..., Any]) -> Callable[..., Any]:
    """`analyse`, which is called once for each kind of call."""
    known: dict[Hashable, Any] = {}

    def analysed(kernel: Any, kwargs: dict[str, Any], tma_descriptor_metadata: Mapping[str, Any]) -> Any:
        kind = None if tma_descriptor_metadata else _kind(kernel, kwargs)
        if kind is None:
            return analyse(kernel, kwargs, tma_descriptor_metadata)
        if kind not in known:
            known[kind] = analyse(kernel, kwargs, tma_descriptor_metadata)
        return copy.deepcopy(known[kind])  # torch 2.11 hands out a list, which a caller may change

    return analysed


def _kind(kernel: Any, kwargs: Mapping[str, Any]) -> Hashable:
    """Equal for calls that have the same answer; None where that is not known."""
    from torch._inductor.ir import TensorBox
    from torch._subclasses.fake_tensor import FakeTensor
    from triton.runtime.autotuner import Autotuner

    if isinstance(kernel, Autotuner):  # made for every call with a number of warps; torch analyses its first config
        kernel, kwargs = kernel.fn, {**kwargs, **(kernel.configs[0].kwargs if kernel.configs else {})}
    kinds: list[tuple[str, type | None, Hashable]] = []
    for name, value in kwargs.items():
        if isinstance(value, FakeTensor | TensorBox):
            kinds.append((name, None, value.dtype))
        elif value is None or isinstance(value, bool | int | float | str):
            kinds.append((name, type(value), value))
        else:
            return None
    return kernel, tuple(kinds)
