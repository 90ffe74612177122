"""Private names of torch that the project calls. Each says what breaks without it, since when it exists, when it can
go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ..machine_limits import writes


def triton_op_body(op: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a torch.library.triton_op was made of: calling it keeps each kernel launch in a traced graph.

    Name: CustomOpDef._abstract_fn. Without it: a traced graph shows the op as one node, and nothing says which
    kernels it launches (needed by targets that run launches themselves). Since: torch 2.6. It can go when triton_op
    gives its function under a public name."""
    return op._abstract_fn  # type: ignore[attr-defined]


def write_package(package: Path, files: Mapping[str, Sequence[Any]], extra: Mapping[str, str]) -> None:
    """Write an AOTInductor package of several programs, each given by the files of its code, and of texts by name.

    Raises OSError where it cannot be written: torch writes into memory, since its own writing of a file ends the
    process when the disk is full.

    Name: torch.export.pt2_archive._package.package_pt2. Without it: the public function packages one program at a time.
    Since: torch 2.9. It can go when torch.export.save, or another public function, packages several.
    """
    from torch.export.pt2_archive._package import package_pt2

    data = BytesIO()
    package_pt2(data, aoti_files={name: list(paths) for name, paths in files.items()}, extra_files=dict(extra))
    with writes(package):
        package.write_bytes(data.getvalue())


def compile_to_files(module: Any, inputs: Sequence[Any], options: dict[str, Any]) -> list[Any]:
    """Compile a graph module with AOTInductor; returns the files of the code, in Inductor's cache.

    Name: torch._inductor.aot_compile. Without it: the public function compiles and packages one program in one step.
    Since: torch 2.2. It can go together with `write_package`."""
    from torch._inductor import aot_compile

    files = aot_compile(module, tuple(inputs), options=options)
    assert isinstance(files, list)  # with aot_inductor.package
    return files


def argument_names(overload: Any) -> tuple[str, ...]:
    """The names of an op's arguments, in order.

    Name: torch._ops.OpOverload._schema. Without it: the arguments of a node in a traced graph have positions and no
    names. Since: torch 1.13. It can go when an op gives its schema under a public name."""
    return tuple(argument.name for argument in overload._schema.arguments)


def is_op(target: Any, namespace: str) -> bool:
    """Whether the target of a node in a traced graph is an op of this namespace.

    Name: torch._ops.OpOverload. Without it: ops cannot be distinguished from Python functions. Since: torch 1.12. It
    can go when torch gives the class under a public name."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == namespace


def fake_tensors() -> AbstractContextManager[Any]:
    """A context in which new tensors have a shape, a dtype and a device, and no memory.

    Name: torch._subclasses.fake_tensor.FakeTensorMode. Without it: tracing allocates the weights and caches of the
    model. Since: torch 1.13. It can go when torch gives the class under a public name."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv())


def kernel_of_launch(node: Any) -> Any:
    """The Triton kernel of a launch node in a traced graph (`is_kernel_launch`).

    Name: torch._higher_order_ops.triton_kernel_wrap.kernel_side_table. Without it: a launch node holds numbers only,
    of a kernel and of its constants. Since: torch 2.3. It can go when a node holds its kernel."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    return kernel_side_table.get_kernel(node.kwargs["kernel_idx"])


def arguments_of_launch(node: Any) -> dict[str, Any]:
    """The arguments of a launch node, by the kernel's names: nodes and constants. Private names as
    `kernel_of_launch`."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    return {**node.kwargs["kwargs"], **kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])}


def grid_of_launch(node: Any) -> tuple[int, ...]:
    """The grid of a launch node whose kernel has one config. Private names as `kernel_of_launch`."""
    (grid,) = node.kwargs["grid"]
    return tuple(grid)


def is_kernel_launch(node: Any) -> bool:
    """Whether a node of a traced graph launches a Triton kernel.

    Name: torch._higher_order_ops.triton_kernel_wrap.triton_kernel_wrapper_mutation. Without it: launches cannot be
    distinguished from other nodes. Since: torch 2.3. It can go when launches have a public node type."""
    from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_mutation

    return node.target is triton_kernel_wrapper_mutation
