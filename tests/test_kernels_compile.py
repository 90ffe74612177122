"""Every Triton kernel compiles for the H200 at the sizes of gpt-oss-20b, on a machine with no GPU.

The op is called on meta tensors with `wrap_triton` of its module replaced by a recorder, so what is
compiled is what the op launches: its arguments, constants, warps and stages, written down nowhere else.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SHARED_MEMORY = 227 * 1024  # bytes a block may have on sm_90
HIDDEN, INTER, EXPERTS, CHOICES = 2880, 2880, 32, 4
KV_HEADS, GROUP, HEAD_DIM = 8, 8, 64
POINTERS = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int32: "*i32",
    torch.int64: "*i64",
}  # fmt: skip


def attention_args(sequences: int, length: int, rows: int, window: int) -> tuple[Any, ...]:
    cache = torch.empty(64, KV_HEADS, rows + 1, HEAD_DIM, dtype=torch.bfloat16, device="meta")
    return (
        cache.new_empty(sequences, length, KV_HEADS * GROUP, HEAD_DIM), cache, cache,
        cache.new_empty(KV_HEADS * GROUP),
        cache.new_empty(sequences, dtype=torch.int64), cache.new_empty(sequences, length, dtype=torch.int64),
        window, HEAD_DIM**-0.5,
    )  # fmt: skip


def expert_args(tokens: int) -> tuple[Any, ...]:
    x = torch.empty(tokens, HIDDEN, dtype=torch.bfloat16, device="meta")

    def matrix(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
        shape = EXPERTS, rows, columns // 32
        return x.new_empty(*shape, 16, dtype=torch.uint8), x.new_empty(shape, dtype=torch.uint8)

    return (
        x, x.new_empty(tokens, CHOICES, dtype=torch.float32),
        x.new_empty(tokens, CHOICES, dtype=torch.int64),
        *matrix(2 * INTER, HIDDEN), x.new_empty(EXPERTS, 2 * INTER),
        *matrix(HIDDEN, INTER), x.new_empty(EXPERTS, HIDDEN), 1.702, 7.0,
    )  # fmt: skip


# label: (module, op, arguments, kernels it launches)
LAUNCHES: dict[str, tuple[str, str, Callable[[], tuple[Any, ...]], list[str]]] = {
    "decode": ("attention", "sink_attention", lambda: attention_args(1, 1, 8192, 0), ["_attend", "_combine"]),
    "decode, window": ("attention", "sink_attention", lambda: attention_args(1, 1, 640, 128), ["_attend"]),
    "prefill": ("attention", "sink_attention", lambda: attention_args(1, 512, 8192, 0), ["_attend"]),
    "prefill, window": ("attention", "sink_attention", lambda: attention_args(1, 512, 640, 128), ["_attend"]),
    "one token": ("experts", "mxfp4_experts", lambda: expert_args(1), ["_gate_up_few", "_down_few"]),
    "batch of 64": ("experts", "mxfp4_experts", lambda: expert_args(64), ["_gate_up_many", "_down_many"]),
    "chunk": ("experts", "mxfp4_experts", lambda: expert_args(512), ["_gate_up_many", "_down_many"]),
}


def record(module: Any, op: str, args: tuple[Any, ...]) -> list[tuple[Any, dict[str, Any]]]:
    """What the op launches on `args`: kernels with their arguments by name."""
    launches = []

    def recorder(kernel):
        def launch(*tensors, **constants):
            launches.append((kernel, dict(zip(kernel.arg_names, tensors, strict=False)) | constants))

        class Grid:
            def __getitem__(self, grid):
                assert all(type(size) is int and size > 0 for size in grid)
                return launch

        return Grid()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wrap_triton", recorder)
        getattr(module, op)(*args)
    return launches


def compile_for_h200(kernel: Any, arguments: dict[str, Any]) -> Any:
    """Triton's compiled kernel, of pointers aligned to 16 bytes as a runner guarantees them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tensors = {name: POINTERS[a.dtype] for name, a in arguments.items() if isinstance(a, torch.Tensor)}
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    constants = {name: a for name, a in arguments.items() if name not in tensors and name not in options}
    source = ASTSource(
        kernel,
        signature={name: tensors.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in tensors},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(compiled: Any, folder: Path) -> dict[str, int]:
    """Registers and bytes of spills a thread, as ptxas reports them for the kernel's PTX."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = folder / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    ptxas = get_ptxas(90)
    arch = re.search(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)[1]
    command = [ptxas.path, "-v", f"--gpu-name={arch}", str(ptx), "-o", str(folder / "kernel.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", report)[1]),
    }


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("label", LAUNCHES)
def test_compiles_for_h200(label, tmp_path):
    name, op, args, kernels = LAUNCHES[label]
    module = importlib.import_module(f"gptoss_plugins.{name}")
    launches = record(module, op, args())
    assert [kernel.fn.__name__ for kernel, _ in launches] == kernels
    for kernel, arguments in launches:
        compiled = compile_for_h200(kernel, arguments)
        used = resources(compiled, tmp_path)
        print(f"{label:18s} {kernel.fn.__name__:14s} shared {compiled.metadata.shared:6d} {used}")
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY
        assert used["spilled"] == 0


if __name__ == "__main__":  # the table of resources, for whoever changes a kernel
    sys.exit(pytest.main([__file__, "-q", "-s"]))
