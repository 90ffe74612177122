"""A kernel as TensorRT sees it: a plugin, made from one launch of a Triton kernel.

    launch   kernel, arguments by name (tensors and constants), grid       found in a traced program
    plugin   PTX and cubin, grid, threads, shared memory, tensor arguments in order

One object serves both ways to place a plugin: between engines its cubin is launched by the runner, inside an
engine its PTX becomes a quick-deployable plugin (gptoss_plugins/tensorrt_plugin.py). Shapes of a program are
static, so the grid is three numbers and everything but tensors is a constant of the code: two launches with
the same constants and dtypes are one plugin.

Triton appends two pointers (scratch memory for the kernel and for its profiler) to the parameters of every
kernel, which TensorRT would not pass. Here they are removed from the PTX, after a look that nothing reads
them, and the cubin is assembled from that very PTX.

Limits: kernels without scratch memory, without TMA descriptors, one CTA a cluster. Tensors are aligned to 16
bytes. Compiling needs no GPU.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
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

    name: str  # the kernel's, and a digest of constants, dtypes and grid
    function: str  # the entry in the code
    arguments: tuple[str, ...]  # names of the tensors, in the order of the parameters
    written: tuple[bool, ...]  # which of them the kernel writes
    grid: tuple[int, int, int]
    threads: int
    shared: int  # bytes
    ptx: str
    cubin: bytes


class PluginMaker:
    """Makes plugins for one arch (sm_<number>), each once."""

    def __init__(self, arch: str) -> None:
        self._arch, self._capability = arch, int(arch.removeprefix("sm_"))
        self._made: dict[str, Plugin] = {}

    def make(
        self, kernel: Any, arguments: Mapping[str, torch.Tensor | int | float | str | bool], grid: Sequence[int]
    ) -> Plugin:
        """The plugin of a launch. Tensors give their dtype only; fakes will do.

        kernel: a JITFunction, or the Autotuner of one configuration that tracing makes of a launch with num_warps.
        Raises ValueError where the kernel is outside of the limits above.
        """
        options: dict[str, int] = {}
        if isinstance(kernel, Autotuner):
            (config,) = kernel.configs
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            arguments = {**arguments, **config.kwargs}
            kernel = kernel.fn
        tensors = {name: arguments[name].dtype for name in kernel.arg_names if isinstance(arguments[name], torch.Tensor)}
        constants = {name: arguments[name] for name in kernel.arg_names if name not in tensors}
        if "EARLY" in constants:  # what tracing cannot know: for which GPU (dependent_launch.py)
            constants["EARLY"] = self._capability >= 90
        grid = (*grid, 1, 1)[:3]
        signature = repr((kernel.cache_key, sorted(constants.items()), list(tensors.values()), grid, self._arch, options))
        name = f"{kernel.__name__.strip('_')}-{hashlib.sha256(signature.encode()).hexdigest()[:8]}"
        if name not in self._made:
            self._made[name] = self._compile(name, kernel, tensors, constants, grid, options)
        return self._made[name]

    def _compile(self, name, kernel, tensors, constants, grid, options) -> Plugin:
        place = {argument: index for index, argument in enumerate(kernel.arg_names)}
        source = ASTSource(
            kernel,
            signature={argument: f"*{_TYPES[tensors[argument]]}" if argument in tensors else "constexpr" for argument in place},
            constexprs=constants,
            attrs={(place[argument],): [["tt.divisibility", 16]] for argument in tensors},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", self._capability, 32), options=options)
        metadata = compiled.metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1 or metadata.tensordesc_meta:
            raise ValueError(f"{kernel.__name__}: uses scratch memory, clusters or descriptors, which a plugin cannot have")
        ptx = _without_scratch(compiled.asm["ptx"], metadata.name, len(tensors))
        stored = _stored(compiled.asm["ttir"])
        return Plugin(
            name=name,
            function=metadata.name,
            arguments=tuple(tensors),
            written=tuple(argument in stored for argument in tensors),
            grid=grid,
            threads=32 * metadata.num_warps,
            shared=metadata.shared,
            ptx=ptx,
            cubin=_assemble(ptx, self._capability),
        )


def _without_scratch(ptx: str, function: str, tensors: int) -> str:
    """PTX whose entry takes its tensors alone."""
    head = re.search(rf"\.visible \.entry {re.escape(function)}\((.*?)\)", ptx, re.S)
    parameters = [line.strip().rstrip(",") for line in head[1].strip().splitlines()]
    if len(parameters) != tensors + _SCRATCH:
        raise ValueError(f"{function}: PTX has {len(parameters)} parameters, expected {tensors} and {_SCRATCH} for scratch")
    kept, dropped = parameters[:tensors], parameters[tensors:]
    body = ptx[head.end() :]
    for parameter in dropped:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise ValueError(f"{function}: reads its scratch pointer {name}, which a plugin cannot have")
    listed = ",\n".join(f"\t{parameter}" for parameter in kept)
    return f"{ptx[: head.start()]}.visible .entry {function}(\n{listed}\n){body}"


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
    target = re.search(r"^\.target (\w+)", ptx, re.M)[1]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [get_ptxas(capability).path, f"--gpu-name={target}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"ptxas refuses the kernel for {target}: {done.stderr.strip()}")
        return cubin.read_bytes()
