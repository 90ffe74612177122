"""A kernel for TensorRT: a plugin, made from one launch of a Triton kernel.

    launch   kernel, arguments by name (tensors and constants), grid       found in a traced program
    plugin   inputs and outputs in order, grid, threads, shared memory, PTX, cubin

One object serves both ways to use a plugin. Between engines, the runner launches its cubin. Inside an engine, its PTX
becomes a quick-deployable plugin (tensorrt_plugin.py). The shapes of a program are static, so the grid is three
numbers, and everything but tensors is a constant of the code. Two launches with the same constants, dtypes, shapes
and grid are one plugin.

TensorRT calls a kernel with its inputs, then its outputs. What a kernel writes is an output. Where that memory held
data before the launch (a cache, a tensor that several launches fill), it is an input too, and the output is its
alias. So the parameters of Triton's PTX are reordered, with one more parameter for each alias, which the code does
not read. Triton appends two pointers, to scratch memory for the kernel and for its profiler. They are removed after a
check that the code does not read them. The cubin is assembled from the same PTX, so both ways pass the same
arguments.

Limits: kernels without scratch memory and without TMA descriptors, one CTA a cluster. Tensors are aligned to 16
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
from typing import Any, TypeAlias

import torch

from gptoss_export.compat.triton import CompiledKernel, compile_to_ptx, options_of_kernel, ptxas_path

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "u8",
}
_SCRATCH = 2  # pointers that Triton appends to the parameters

Tensors: TypeAlias = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # name -> dtype and shape


@dataclass(frozen=True)
class Plugin:
    """One kernel with its constants, for one arch.

    name      the kernel's name and a digest of its code, constants, dtypes, shapes and grid
    function  the entry in the code
    inputs    names of the tensors that it is given; the code may not read all of them
    outputs   names of the tensors that it writes; one that is an input too is an alias of that input
    tensors   dtype and shape of each
    threads   of a block
    shared    bytes of shared memory of a block
    """

    name: str
    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    grid: tuple[int, int, int]
    threads: int
    shared: int
    ptx: str
    cubin: bytes

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors in the order of the code's parameters."""
        return self.inputs + self.outputs


class PluginMaker:
    """Makes the plugins for one arch (sm_<number>). Equal launches share one plugin."""

    def __init__(self, arch: str) -> None:
        self._arch, self._capability = arch, int(arch.removeprefix("sm_"))
        self._made: dict[str, Plugin] = {}

    def make(
        self,
        kernel: Any,
        arguments: Mapping[str, torch.Tensor | int | float | str | bool],
        grid: Sequence[int],
        written_before: Collection[str],
    ) -> Plugin:
        """The plugin of a launch.

        kernel          a JITFunction, or the Autotuner with one config that tracing makes of a launch with num_warps
        arguments       tensors by name, of which dtype and shape are used, so that fake tensors serve; and constants
        written_before  names of the tensors whose memory was written before the launch

        Raises ValueError where the kernel is outside of the limits above.
        """
        kernel, options, more = options_of_kernel(kernel)
        arguments = {**arguments, **more}
        tensors: Tensors = {}
        constants: dict[str, Any] = {}
        for name in kernel.arg_names:
            value = arguments[name]
            if isinstance(value, torch.Tensor):
                tensors[name] = value.dtype, tuple(value.shape)
            else:
                constants[name] = value
        x, y, z = (*grid, 1, 1)[:3]
        signature = repr(
            (
                kernel.cache_key,
                sorted(constants.items()),
                tensors,
                (x, y, z),
                sorted(written_before),
                self._arch,
                options,
            )
        )
        name = f"{kernel.__name__.strip('_')}-{hashlib.sha256(signature.encode()).hexdigest()[:8]}"
        if name not in self._made:
            compiled = self._compile(kernel, tensors, constants, options)
            self._made[name] = self._plugin(name, compiled, tensors, (x, y, z), written_before)
        return self._made[name]

    def _compile(
        self, kernel: Any, tensors: Tensors, constants: dict[str, Any], options: dict[str, int]
    ) -> CompiledKernel:
        """Triton's compiled kernel. Raises ValueError where it needs more than a plugin can have."""
        types = {name: f"*{_TYPES[dtype]}" for name, (dtype, _) in tensors.items()}
        compiled = compile_to_ptx(kernel, types, constants, self._capability, options)
        if compiled.limits:
            raise ValueError(f"{kernel.__name__}: uses {', '.join(compiled.limits)}, which a plugin cannot have")
        return compiled

    def _plugin(
        self,
        name: str,
        compiled: CompiledKernel,
        tensors: Tensors,
        grid: tuple[int, int, int],
        written_before: Collection[str],
    ) -> Plugin:
        stored = _stored(compiled.ttir)
        inputs = tuple(tensor for tensor in tensors if tensor in written_before or tensor not in stored)
        outputs = tuple(tensor for tensor in tensors if tensor in stored)
        ptx = _with_parameters(compiled.ptx, compiled.function, list(tensors), inputs, outputs)
        return Plugin(
            name=name,
            function=compiled.function,
            inputs=inputs,
            outputs=outputs,
            tensors=tensors,
            grid=grid,
            threads=compiled.threads,
            shared=compiled.shared,
            ptx=ptx,
            cubin=_assemble(ptx, self._capability),
        )


def _with_parameters(
    ptx: str, function: str, tensors: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]
) -> str:
    """PTX whose entry takes its inputs, then its outputs, and no scratch memory."""
    head = re.search(rf"\.visible \.entry {re.escape(function)}\((.*?)\)", ptx, re.DOTALL)
    if head is None:
        raise ValueError(f"{function}: PTX has no entry of this name")
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
    parameter_of = dict(zip(tensors, parameters, strict=False))
    ordered = [parameter_of[name] for name in inputs]
    for name in outputs:
        ordered.append(f".param .u64 {function}_alias_{name}" if name in inputs else parameter_of[name])
    joined = ",\n".join(f"\t{parameter}" for parameter in ordered)
    return f"{ptx[: head.start()]}.visible .entry {function}(\n{joined}\n){body}"


def _stored(ttir: str) -> set[str]:
    """Names of the tensors that a kernel stores to, found in its intermediate code (TTIR).

    Each value of the code is mapped to the tensors that it points into: a parameter to itself, the result of pointer
    arithmetic to the tensors of its operands. Raises ValueError for an atomic operation or a call, which may write too.
    """
    points_into: dict[str, set[str]] = {}
    written: set[str] = set()
    for line in ttir.splitlines():
        if "tt.func" in line:
            for argument in re.findall(r"(%[\w$]+): !tt\.ptr", line):
                points_into[argument] = {argument.removeprefix("%")}
        if store := re.search(r"tt\.store (%[\w#$]+)", line):
            written |= points_into.get(store[1].split("#")[0], set())
        elif "tt.atomic" in line or "tt.call" in line:
            raise ValueError(f"cannot find out what a kernel writes from: {line.strip()}")
        elif assignment := re.match(r"\s*(%[\w$]+)(?::\d+)? = (.*)", line):
            result, expression = assignment.groups()
            if "tt.ptr" in expression or "tt.addptr" in expression:
                operands = re.findall(r"%[\w$]+", expression)
                points_into[result] = set().union(*(points_into.get(operand, set()) for operand in operands))
    return written


def _assemble(ptx: str, capability: int) -> bytes:
    """PTX to a cubin, with the assembler that Triton brings. Raises ValueError with its message where it fails."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if target is None:
        raise ValueError("PTX has no .target")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas_path(capability), f"--gpu-name={target[1]}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            raise ValueError(f"ptxas cannot assemble the kernel for {target[1]}: {done.stderr.strip()}")
        return cubin.read_bytes()
