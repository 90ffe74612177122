"""What an op of the graph is: a contract that any kernel can be held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Op:
    """One `gptoss::` op.

    name       the op is `gptoss::<name>`, a kernel for it is found by this name
    reference  pure PyTorch, traceable, contiguous result; what the op means, and the CPU implementation. That of
               a larger op may call a smaller one
    fake       shape and dtype of the result, for tracing
    cases      argument tuples that cover what implementations get wrong; (device, dtype) -> labelled cases
    mutates    names of the arguments that are written in place; an op that only writes returns None
    parts      names of the smaller ops that its reference calls
    """

    name: str
    reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...] | None]
    fake: Callable[..., torch.Tensor | tuple[torch.Tensor, ...] | None]
    cases: Callable[[torch.device, torch.dtype], Iterator[tuple[str, tuple[Any, ...]]]]
    mutates: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def define(self) -> Op:
        """Register the op with PyTorch's dispatcher; returns itself."""
        torch.library.custom_op(f"gptoss::{self.name}", self.reference, mutates_args=self.mutates)
        torch.library.register_fake(f"gptoss::{self.name}", self.fake)
        return self

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The node target that stands for this op in an exported graph."""
        return getattr(torch.ops.gptoss, self.name).default
