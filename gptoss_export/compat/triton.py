"""Private names of Triton that the project calls. Each says what breaks without it, since when it exists, when it can
go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WARP = 32  # threads


@dataclass(frozen=True)
class CompiledKernel:
    """What Triton makes of a kernel with fixed constants.

    function  the entry in the PTX
    ttir      Triton's first intermediate code
    threads   of a block
    shared    bytes of shared memory of a block
    limits    what a launch needs beyond its parameters, in words; empty for most kernels
    """

    function: str
    ttir: str
    ptx: str
    cubin: bytes
    threads: int
    shared: int
    limits: tuple[str, ...]


def compile_to_ptx(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    options: Mapping[str, int],
) -> CompiledKernel:
    """Compile a kernel without a GPU.

    kernel      a JITFunction
    types       of the parameters that are tensors, such as "*bf16"; all are aligned to 16 bytes
    constants   the values of the other parameters
    capability  90 for sm_90
    options     num_warps, num_stages

    The code has no line numbers, since they come with the paths of this machine.

    Names: triton.compiler.ASTSource, triton.backends.compiler.GPUTarget, the fields of a compiled kernel's metadata.
    Without them: a kernel is compiled by launching it, which needs a GPU. Since: Triton 3.0. They can go when
    `triton.compile` takes a kernel and an arch.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(constants),
        attrs={(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in types},
    )
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=dict(options))
    metadata = compiled.metadata
    needs = {
        "scratch memory": metadata.global_scratch_size or metadata.profile_scratch_size,
        "clusters": metadata.num_ctas != 1,
        "tensor descriptors": metadata.tensordesc_meta,
    }
    return CompiledKernel(
        function=metadata.name,
        ttir=compiled.asm["ttir"],
        ptx=compiled.asm["ptx"],
        cubin=compiled.asm["cubin"],
        threads=WARP * metadata.num_warps,
        shared=metadata.shared,
        limits=tuple(name for name, needed in needs.items() if needed),
    )


def options_of_kernel(kernel: Any) -> tuple[Any, dict[str, int], dict[str, Any]]:
    """The JITFunction of a traced launch, its options and its other keyword arguments.

    Name: triton.runtime.autotuner.Autotuner. torch traces a launch that has num_warps as an Autotuner of one config.
    Without it: the number of warps is lost. Since: torch 2.6. It can go when a launch node holds its options.
    """
    from triton.runtime.autotuner import Autotuner

    if not isinstance(kernel, Autotuner):
        return kernel, {}, {}
    (config,) = kernel.configs
    return kernel.fn, {"num_warps": config.num_warps, "num_stages": config.num_stages}, dict(config.kwargs)


def ptxas_path(capability: int) -> str:
    """The assembler for PTX that Triton brings.

    Name: triton.backends.nvidia.compiler.get_ptxas. Without it: the CUDA toolkit has to be installed. Since: Triton
    3.0. It can go when Triton gives the path under a public name.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    path: str = get_ptxas(capability).path
    return path


def compile_errors() -> tuple[type[Exception], ...]:
    """The errors by which Triton says that it cannot compile or launch a kernel with these numbers.

    Names: triton.compiler.errors.CompilationError, triton.runtime.errors.OutOfResources and PTXASError. Without them:
    a launch config that does not fit cannot be distinguished from a bug. Since: Triton 3.0. They can go when Triton
    documents its errors.
    """
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return CompilationError, OutOfResources, PTXASError
