"""Every Triton kernel compiles for the H200 at the sizes of gpt-oss-20b, on a machine with no GPU.

The op is called on meta tensors with `wrap_triton` replaced by a recorder, so what is
compiled is what the op launches: its arguments, constants, warps and stages, written down nowhere else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptoss_export.tuning.op_calls import calls
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compiler.export import Shapes
from gptoss_export.compiler.lower import kernels, shipped_tables

SHARED_MEMORY = 227 * 1024  # bytes a block may have on sm_90
HIDDEN, INTER, EXPERTS, CHOICES = 2880, 2880, 32, 4
KV_HEADS, GROUP, HEAD_DIM = 8, 8, 64
POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int32: "*i32",
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


def attention_sublayer_args(tokens: int, rows: int, window: int) -> tuple[Any, ...]:
    attention = attention_args(1, tokens, rows, window)
    x = torch.empty(tokens, HIDDEN, dtype=torch.float32, device="meta")
    width = (GROUP + 2) * KV_HEADS * HEAD_DIM

    def weight(*shape: int) -> torch.Tensor:
        return x.new_empty(shape, dtype=torch.bfloat16)

    angles = x.new_empty(tokens, HEAD_DIM // 2)
    return (
        x, weight(HIDDEN), weight(width, HIDDEN), weight(width),
        weight(HIDDEN, KV_HEADS * GROUP * HEAD_DIM), weight(HIDDEN), attention[3], *attention[1:3],
        angles, angles, *attention[4:], 1e-5,
    )  # fmt: skip


def kv_write_args(tokens: int, rows: int) -> tuple[Any, ...]:
    attention = attention_args(1, tokens, rows, 0)
    key = torch.empty(tokens, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="meta")
    return *attention[1:3], key, key, *attention[4:6]


def experts_sublayer_args(tokens: int, experts: int = EXPERTS) -> tuple[Any, ...]:
    x, _, _, *weights, alpha, limit = expert_args(tokens)
    positions = x.new_empty(tokens, dtype=torch.int64)
    router = x.new_empty(experts, HIDDEN), x.new_empty(experts)
    return x.float(), x.new_empty(HIDDEN), *router, *weights, positions, CHOICES, alpha, limit, 1e-5


def unembed_args(rows: int) -> tuple[Any, ...]:
    x = torch.empty(rows, HIDDEN, dtype=torch.float32, device="meta")
    return x, x.new_empty(HIDDEN, dtype=torch.bfloat16), x.new_empty(201088, HIDDEN, dtype=torch.bfloat16), 1e-5


FEW = ["_gate_up_pdl", "_down_pdl"]
MANY = ["_count_pairs", "_place_pairs", "_gate_up_many", *2 * ["_down_many", "_sum_choices"]]

# label: (op, arguments, kernels it launches)
LAUNCHES: dict[str, tuple[str, Callable[[], tuple[Any, ...]], list[str]]] = {
    "decode": ("sink_attention", lambda: attention_args(1, 1, 8192, 0), ["_attend_pdl", "_combine_pdl"]),
    "decode, window": ("sink_attention", lambda: attention_args(1, 1, 640, 128), ["_attend_pdl"]),
    "prefill": ("sink_attention", lambda: attention_args(1, 512, 8192, 0), ["_attend_pdl"]),
    "prefill, window": ("sink_attention", lambda: attention_args(1, 512, 640, 128), ["_attend_pdl"]),
    "experts, one token": ("mxfp4_experts", lambda: expert_args(1), ["_arrange", *FEW]),
    "experts, batch of 64": ("mxfp4_experts", lambda: expert_args(64), MANY),
    "experts, chunk": ("mxfp4_experts", lambda: expert_args(512), MANY),
    "cache write, one token": ("kv_write", lambda: kv_write_args(1, 8192), ["_write_kv"]),
    "cache write, chunk": ("kv_write", lambda: kv_write_args(512, 640), ["_write_kv"]),
    "attention half, one token": (
        "attention_sublayer", lambda: attention_sublayer_args(1, 8192, 0),
        ["_qkv_pdl", "_attend_next_pdl", "_combine_pdl", "_project_pdl"],
    ),
    "attention half, chunk": ("attention_sublayer", lambda: attention_sublayer_args(512, 640, 128), ["_attend_pdl"]),
    "experts half, one token": ("experts_sublayer", lambda: experts_sublayer_args(1), ["_router_pdl", *FEW]),
    "experts half, 8 tokens": ("experts_sublayer", lambda: experts_sublayer_args(8), ["_router_pdl", *FEW]),
    "experts half, 128 experts": (
        "experts_sublayer", lambda: experts_sublayer_args(1, 128), ["_router_pdl", *FEW],
    ),
    "unembedding, one row": ("unembed", lambda: unembed_args(1), ["_logits_pdl", "_choose_pdl"]),
    "unembedding, 64 rows": ("unembed", lambda: unembed_args(64), []),
}  # fmt: skip


def record(op: str, args: tuple[Any, ...], tables=()) -> list[tuple[Any, dict[str, Any]]]:
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

    implementation = kernels()[op].bind("sm_90", tables)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("gptoss_plugins.") and hasattr(module, "wrap_triton"):
                patch.setattr(module, "wrap_triton", recorder)
        implementation(*args)
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
    op, args, expected = LAUNCHES[label]
    launches = record(op, args())
    assert [kernel.fn.__name__ for kernel, _ in launches] == expected
    for kernel, arguments in launches:
        compiled = compile_for_h200(kernel, arguments)
        used = resources(compiled, tmp_path)
        name = kernel.fn.__name__
        print(f"{label:26s} {name:14s} shared {compiled.metadata.shared:6d} {used}")
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY
        assert used["spilled"] == 0
        assert ("griddepcontrol.wait" in compiled.asm["ptx"]) == name.endswith("_pdl")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("attention half, one token", "_qkv_pdl"), ("attention half, one token", "_project_pdl"),
        ("experts half, one token", "_router_pdl"), ("experts half, one token", "_down_pdl"),
        ("unembedding, one row", "_logits_pdl"),
    ],
)  # fmt: skip
def test_weights_are_asked_for_before_the_wait(label, name):
    """16 bytes a thread and load, all of them before the kernel waits for the one before it."""
    op, args, _ = LAUNCHES[label]
    kernel, arguments = next(launch for launch in record(op, args()) if launch[0].fn.__name__ == name)
    ptx = compile_for_h200(kernel, arguments).asm["ptx"]
    loads = [match.start() for match in re.finditer(r"ld\.global\.cg\.v4\.b32", ptx)]
    waits = [match.start() for match in re.finditer(r"griddepcontrol\.wait", ptx)]
    assert loads
    # A kernel of two branches waits in each of them; no wait may stand among the loads.
    assert not [wait for wait in waits if loads[0] < wait < loads[-1]]
    assert [wait for wait in waits if wait > loads[-1]]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", ["_gate_up_many", "_down_many"])
def test_products_are_done_before_their_weights_are_overwritten(name):
    """In the loop, after the unpacking: what comes next writes the registers that a product reads."""
    op, args, _ = LAUNCHES["experts, chunk"]
    kernel, arguments = next(launch for launch in record(op, args()) if launch[0].fn.__name__ == name)
    ptx = compile_for_h200(kernel, arguments).asm["ptx"]
    loop = ptx[ptx.index("Inner Loop Header") :]
    loop = loop[: loop.index("wgmma.mma_async")]
    waits = [match.start() for match in re.finditer(r"wgmma\.wait_group\.sync\.aligned 0", loop)]
    assert waits and loop.rindex("fma.rn.bf16x2") < waits[-1]
    # Nothing but moves to where the product reads them: the next thing that is begun is the product.
    assert "ld.shared" not in loop[waits[-1] :] and "lop3" not in loop[waits[-1] :]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("batch", [1, 8])
def test_measured_cuts_compile(batch):
    """Those of all shipped tables that are not the kernels' own guess."""
    tables, compiled = shipped_tables(), 0
    for call in calls(PRESETS["20b"], Shapes(batch, 8192, (128, 2048) if batch == 1 else (128,)), torch.bfloat16):
        for table in tables:
            tiles = table.find(call.cut)
            if tiles is None or tiles == call.cut.default:
                continue
            launched = record(call.op, tuple(call.arguments.values()), (table,))
            for kernel, arguments in launched:
                assert compile_for_h200(kernel, arguments).metadata.shared <= SHARED_MEMORY
                compiled += 1
    assert compiled > 5


if __name__ == "__main__":  # the table of resources, for whoever changes a kernel
    sys.exit(pytest.main([__file__, "-q", "-s"]))
