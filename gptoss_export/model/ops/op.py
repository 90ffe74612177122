"""What an op of the graph is: a contract that any kernel can be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch

from ...compat.pytorch import argument_names
from .draw import Arguments, Draw, normal

Result: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...] | None


class Case(NamedTuple):
    """A test case of an op: a label and the arguments of the call, by name."""

    label: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Op:
    """One `gptoss::` op.

    name       the op is `gptoss::<name>`; kernels are offered under this name
    reference  the op in pure PyTorch, traceable, with a contiguous result. It is the op's meaning. It computes the op
               on a CPU and wherever there is no kernel. The reference of a composed op calls smaller ops
    fake       shape and dtype of the result, for tracing
    cases      (device, dtype) to cases that cover what implementations get wrong
    mutates    names of the arguments that are written in place; an op that only writes returns None
    parts      names of the smaller ops that the reference calls
    realistic  how to draw an argument like those of real use, by name; others are drawn from a normal distribution
    written    arguments to what counts of the tensors that were written in place; all of them unless it is given
    as_kernel  True for an op that a compiler of plain operators does badly (packed weights, data-dependent reads,
               writes in place): such a target keeps it as a kernel launch
    serves_everywhere  True for an op with MXFP4 weights whose reference computes it on a GPU too until a kernel does:
               lowering brings the interleaved codes back into the checkpoint's order. It is slow
    """

    name: str
    reference: Callable[..., Result]
    fake: Callable[..., Result]
    cases: Callable[[torch.device, torch.dtype], Iterator[Case]]
    mutates: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    realistic: Mapping[str, Callable[[Draw, torch.Tensor], torch.Tensor]] = field(default_factory=dict)
    written: Callable[[Arguments], Sequence[torch.Tensor]] | None = None
    as_kernel: bool = False
    serves_everywhere: bool = False

    def define(self) -> Op:
        """Register the op with PyTorch's dispatcher; returns itself."""
        torch.library.custom_op(f"gptoss::{self.name}", self.reference, mutates_args=self.mutates)
        torch.library.register_fake(f"gptoss::{self.name}", self.fake)
        return self

    @property
    def overload(self) -> Any:
        """The target of the nodes that stand for this op in a traced graph."""
        return getattr(torch.ops.gptoss, self.name).default

    @property
    def expert_matrices(self) -> tuple[str, ...]:
        """The matrices of experts among the arguments, such as down, which may be in MXFP4."""
        names = self.argument_names
        return tuple(name.removesuffix("_table") for name in names if name.endswith("_table"))

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The names of the arguments, in order."""
        return argument_names(self.overload)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, in order. Raises TypeError where one is missing or unknown."""
        names = self.argument_names
        found = dict(zip(names, args, strict=False)) | dict(kwargs)
        if len(args) + len(kwargs) != len(names) or found.keys() != set(names):
            raise TypeError(f"gptoss::{self.name}: found arguments {', '.join(found)}, expected {', '.join(names)}")
        return {name: found[name] for name in names}

    def draw(self, arguments: Arguments, generator: torch.Generator, position: int) -> dict[str, Any]:
        """Arguments like those of real use, on the generator's device: of the shapes and dtypes of `arguments`, which
        may be fake tensors. Queries end at `position`. Numbers stay as they are."""
        drawn: dict[str, Any] = {}
        for name, value in arguments.items():
            if not isinstance(value, torch.Tensor):
                drawn[name] = value
                continue
            tensor = self.realistic.get(name, normal)(Draw(generator, position, arguments), value)
            drawn[name] = tensor.to(value.dtype).contiguous()
        return drawn

    def results(self, returned: Result, arguments: Arguments) -> list[torch.Tensor]:
        """Everything that a call produced: what it returned, and what counts of the arguments written in place."""
        found = [] if returned is None else list(returned) if isinstance(returned, tuple) else [returned]
        if self.written is not None:
            return [*found, *self.written(arguments)]
        return [*found, *(arguments[name] for name in self.mutates)]
