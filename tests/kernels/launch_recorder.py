"""Records what a kernel op launches, without a GPU, and compiles the launches."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from kernel_cases import PartsByKernels

from gptoss_export.compat.triton import CompiledKernel, compile_to_ptx
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.kernels.tuned_configs import TunedConfigs
from gptoss_export.model.ops import OPS

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Launch(NamedTuple):
    """A launched kernel (a triton.JITFunction), its arguments by name, its grid."""

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def description(self) -> tuple[Any, ...]:
        """Everything that decides what is compiled and how it is launched, comparable."""
        described = {
            name: (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else value
            for name, value in self.arguments.items()
        }
        return self.name, described, self.grid


def record(
    op: str, arguments: Mapping[str, Any], tuned: Sequence[TunedConfigs] = (), arch: str = "sm_90"
) -> list[Launch]:
    """What the kernels of `op` launch for a call, whose tensors may be on the meta device.

    A call that the op's kernels do not cover is computed by its reference, and the smaller ops by their kernels.
    """
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            assert all(type(size) is int and size > 0 for size in grid)

            def launch(*tensors: Any, **constants: Any) -> None:
                by_name = dict(zip(self.kernel.arg_names, tensors, strict=False)) | constants
                launches.append(Launch(self.kernel, by_name, grid))

            return launch

    chooser = ConfigChooser(arch, tuned)
    implementation = kernels()[op].bind(OPS[op], chooser)
    with pytest.MonkeyPatch.context() as patch, PartsByKernels(chooser):
        for name, module in list(sys.modules.items()):
            if name.startswith("gptoss_plugins.") and hasattr(module, "wrap_triton"):
                patch.setattr(module, "wrap_triton", Recorder)
        implementation(**arguments)
    return launches


def compile_for_h200(launch: Launch) -> CompiledKernel:
    return compile_launch(launch, "sm_90")


def compile_launch(launch: Launch, arch: str) -> CompiledKernel:
    """Triton's compiled kernel, for pointers aligned to 16 bytes, which the runner guarantees."""
    kernel, arguments = launch.kernel, launch.arguments
    tensors = {name: _POINTERS[a.dtype] for name, a in arguments.items() if isinstance(a, torch.Tensor)}
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    constants = {name: a for name, a in arguments.items() if name not in tensors and name not in options}
    return compile_to_ptx(kernel, tensors, constants, int(arch.removeprefix("sm_")), options)
