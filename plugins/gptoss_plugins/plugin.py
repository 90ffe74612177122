"""A kernel as TensorRT sees it: a plugin, made from one launch of a Triton kernel.

    launch   kernel, arguments by name (tensors and constants), grid       found in a traced program
    plugin   inputs and outputs in order, grid, threads, shared memory, PTX, cubin

One object serves both ways to place a plugin: between engines its cubin is launched by the runner, inside an
engine its PTX becomes a quick-deployable plugin (gptoss_plugins/tensorrt_plugin.py). Shapes of a program are
static, so the grid is three numbers and everything but tensors is a constant of the code: two launches with
the same constants, dtypes and shapes are one plugin.

TensorRT calls a kernel with its inputs, then its outputs. What a kernel writes is an output; where that memory
holds something before (a cache, a tensor that several launches fill), it is an input too, and the output is its
alias. So the parameters of Triton's PTX are put into that order, with one that nobody reads for each alias. The
two pointers that Triton appends (scratch memory for the kernel and for its profiler) are removed, after a look
that nothing reads them. The cubin is assembled from that very PTX, so that both ways pass the same arguments.

Limits: kernels without scratch memory, without TMA descriptors, one CTA a cluster. Tensors are aligned to 16
bytes. Compiling needs no GPU.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner

_TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", torch.bool: "u8",
}  # fmt: skip
_SCRATCH = 2  # pointers that Triton appends


@dataclass(frozen=True)
class Plugin:
    """One kernel with its constants, for one arch."""

    name: str  # the kernel's, and a digest of constants, dtypes, shapes and grid
    function: str  # the entry in the code
    inputs: tuple[str, ...]  # names of the tensors that it is given; some it may leave alone
    outputs: tuple[str, ...]  # of those that it writes; an alias where the name is an input's too
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    grid: tuple[int, int, int]
    threads: int
    shared: int  # bytes
    ptx: str
    cubin: bytes

    @property
    def arguments(self) -> tuple[str, ...]:
        """In the order of the parameters."""
        return self.inputs + self.outputs


class PluginMaker:
    """Makes plugins for one arch (sm_<number>), each once."""

    def __init__(self, arch: str) -> None:
        self._arch, self._capability = arch, int(arch.removeprefix("sm_"))
        self._made: dict[str, Plugin] = {}

    def make(
        self,
        kernel: Any,
        arguments: Mapping[str, torch.Tensor | int | float | str | bool],
        grid: Sequence[int],
        held: Collection[str],
    ) -> Plugin:
        """The plugin of a launch. Tensors give their dtype and shape only; fakes will do.

        held: names of the tensors whose memory was written before the launch.

        kernel: a JITFunction, or the Autotuner of one configuration that tracing makes of a launch with num_warps.
        Raises ValueError where the kernel is outside of the limits above.
        """
        options: dict[str, int] = {}
        if isinstance(kernel, Autotuner):
            (config,) = kernel.configs
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            arguments = {**arguments, **config.kwargs}
            kernel = kernel.fn
        tensors = {
            name: (arguments[name].dtype, tuple(arguments[name].shape))
            for name in kernel.arg_names
            if isinstance(arguments[name], torch.Tensor)
        }
        constants = {name: arguments[name] for name in kernel.arg_names if name not in tensors}
        grid = (*grid, 1, 1)[:3]
        signature = repr(
            (kernel.cache_key, sorted(constants.items()), tensors, grid, sorted(held), self._arch, options)
        )
        name = f"{kernel.__name__.strip('_')}-{hashlib.sha256(signature.encode()).hexdigest()[:8]}"
        if name not in self._made:
            self._made[name] = self._compile(name, kernel, tensors, constants, grid, held, options)
        return self._made[name]

    def _compile(self, name, kernel, tensors, constants, grid, held, options) -> Plugin:
        place = {argument: index for index, argument in enumerate(kernel.arg_names)}
        source = ASTSource(
            kernel,
            signature={
                argument: f"*{_TYPES[tensors[argument][0]]}" if argument in tensors else "constexpr"
                for argument in place
            },
            constexprs=constants,
            attrs={(place[argument],): [["tt.divisibility", 16]] for argument in tensors},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", self._capability, 32), options=options)
        metadata = compiled.metadata
        if (
            metadata.global_scratch_size
            or metadata.profile_scratch_size
            or metadata.num_ctas != 1
            or metadata.tensordesc_meta
        ):
            raise ValueError(
                f"{kernel.__name__}: uses scratch memory, clusters or descriptors, which a plugin cannot have"
            )
        stored = _stored(compiled.asm["ttir"])
        inputs = tuple(argument for argument in tensors if argument in held or argument not in stored)
        outputs = tuple(argument for argument in tensors if argument in stored)
        ptx = _with_parameters(compiled.asm["ptx"], metadata.name, list(tensors), inputs, outputs)
        return Plugin(
            name=name,
            function=metadata.name,
            inputs=inputs,
            outputs=outputs,
            tensors=tensors,
            grid=grid,
            threads=32 * metadata.num_warps,
            shared=metadata.shared,
            ptx=ptx,
            cubin=_assemble(ptx, self._capability),
        )


def _with_parameters(
    ptx: str, function: str, tensors: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]
) -> str:
    """PTX whose entry takes its inputs, then its outputs, and no scratch memory."""
    head = re.search(rf"\.visible \.entry {re.escape(function)}\((.*?)\)", ptx, re.DOTALL)
    parameters = [line.strip().rstrip(",") for line in head[1].strip().splitlines()]
    if len(parameters) != len(tensors) + _SCRATCH:
        raise ValueError(
            f"{function}: PTX has {len(parameters)} parameters, expected {len(tensors)} and {_SCRATCH} for scratch"
        )
    body = ptx[head.end() :]
    for parameter in parameters[len(tensors) :]:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise ValueError(f"{function}: reads its scratch pointer {name}, which a plugin cannot have")
    of = dict(zip(tensors, parameters, strict=False))
    listed = [of[name] for name in inputs]
    listed += [f".param .u64 {function}_alias_{name}" if name in inputs else of[name] for name in outputs]
    joined = ",\n".join(f"\t{parameter}" for parameter in listed)
    return f"{ptx[: head.start()]}.visible .entry {function}(\n{joined}\n){body}"


def _stored(ttir: str) -> set[str]:
    """Names of the tensors that a store in the kernel's intermediate code goes to, through pointer arithmetic."""
    source: dict[str, set[str]] = {}
    written: set[str] = set()
    for line in ttir.splitlines():
        for argument in re.findall(r"(%[\w$]+): !tt\.ptr", line) if "tt.func" in line else ():
            source[argument] = {argument.removeprefix("%")}
        if stored := re.search(r"tt\.store (%[\w#$]+)", line):
            written |= source.get(stored[1].split("#")[0], set())
        elif "tt.atomic" in line or "tt.call" in line:
            raise ValueError(f"what a kernel writes cannot be told from: {line.strip()}")
        elif made := re.match(r"\s*(%[\w$]+)(?::\d+)? = (.*)", line):
            used = set().union(*(source.get(name, set()) for name in re.findall(r"%[\w$]+", made[2])))
            if "tt.ptr" in made[2] or "tt.addptr" in made[2]:
                source[made[1]] = used
    return written


def _assemble(ptx: str, capability: int) -> bytes:
    """PTX to a cubin, by the assembler that comes with Triton."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [get_ptxas(capability).path, f"--gpu-name={target}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"ptxas refuses the kernel for {target}: {done.stderr.strip()}")
        return cubin.read_bytes()
