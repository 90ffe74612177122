"""Every Triton kernel compiles for the H200 at the sizes of gpt-oss-20b, on a machine without a GPU.

The op is called on meta tensors with `wrap_triton` replaced by a recorder. So what is compiled is what the op
launches: its arguments, constants, warps and stages are written nowhere else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from gptoss_plugins.arch import shared_memory
from kernel_calls import LAUNCHES, calls_of_20b
from launch_recorder import Launch, compile_for_h200, compile_launch, record
from sass import loops, overwritten

from gptoss_export.compat.triton import CompiledKernel, ptxas_path
from gptoss_export.kernels.registry import kernels, shipped_tuned_configs
from gptoss_export.model.ops import OPS

compiled_only = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")


def launches_of(label: str) -> list[Launch]:
    op, arguments, _ = LAUNCHES[label]
    return record(op, arguments())


def resources(compiled: CompiledKernel, folder: Path) -> dict[str, int]:
    """Registers and bytes of spills of a thread, as ptxas reports them for the kernel's PTX."""
    ptx = folder / "kernel.ptx"
    ptx.write_text(compiled.ptx)
    arch = re.search(r"^\.target (\w+)", compiled.ptx, re.MULTILINE)[1]
    command = [ptxas_path(90), "-v", f"--gpu-name={arch}", str(ptx), "-o", str(folder / "kernel.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", report)[1]),
    }


@compiled_only
@pytest.mark.parametrize("label", LAUNCHES)
def test_compiles_for_h200(label: str, tmp_path: Path) -> None:
    launches = launches_of(label)
    assert [launch.name for launch in launches] == LAUNCHES[label][2]
    for launch in launches:
        compiled = compile_for_h200(launch)
        used = resources(compiled, tmp_path)
        print(f"{label:26s} {launch.name:14s} shared {compiled.shared:6d} {used}")
        assert compiled.cubin
        assert compiled.shared <= shared_memory("sm_90")
        assert used["spilled"] == 0
        assert ("griddepcontrol.wait" in compiled.ptx) == launch.name.endswith("_pdl")


@compiled_only
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_100", "sm_120"])
@pytest.mark.parametrize(
    "label",
    [
        "attention half, batch of 64",
        "attention half, 128 tokens",
        "experts half, one token",
        "experts half, 128 tokens",
        "experts half, chunk of 512, 128 experts",
        "experts half, chunk of 150, 256 experts",
        "experts, chunk",
        "experts, chunk of 8192",
        "experts half, nf4, one token",
        "experts half, nf4, batch of 64",
        "experts half, nf4, chunk",
        "experts half, nf4-32, one token",
        "experts half, bf16, one token",
        "experts half, bf16, batch of 64",
        "experts half, bf16, chunk",
        "unembedding, 64 rows",
        "prefill",
        "grouped gate_up",
        "grouped gate_up, transposed",
        "gradients of packed attention",
    ],
)
def test_compiles_for_other_gpus(label: str, arch: str) -> None:
    """Within the shared memory that a block may have there. sm_89 has the instructions and the limits of sm_86."""
    op, arguments, _ = LAUNCHES[label]
    for launch in record(op, arguments(), arch=arch):
        assert compile_launch(launch, arch).shared <= shared_memory(arch), launch.name


@compiled_only
@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("attention half, one token", "_qkv_pdl"),
        ("attention half, one token", "_project_pdl"),
        ("experts half, one token", "_router_pdl"),
        ("experts half, one token", "_down_pdl"),
        ("experts half, nf4, one token", "_down_pdl"),
        ("experts half, bf16, one token", "_down_pdl"),
        ("unembedding, one row", "_logits_pdl"),
    ],
)
def test_weights_are_loaded_before_the_wait(label: str, name: str) -> None:
    """A thread loads 16 bytes at a time, and all loads start before the kernel waits for the kernel before it."""
    launch = next(launch for launch in launches_of(label) if launch.name == name)
    ptx = compile_for_h200(launch).ptx
    loads = [match.start() for match in re.finditer(r"ld\.global\.cg\.v4\.b32", ptx)]
    waits = [match.start() for match in re.finditer(r"griddepcontrol\.wait", ptx)]
    assert loads
    # A kernel with two branches waits in both of them. No wait may be between the loads.
    assert not [wait for wait in waits if loads[0] < wait < loads[-1]]
    assert [wait for wait in waits if wait > loads[-1]]


@compiled_only
@pytest.mark.parametrize("label", LAUNCHES)
def test_no_register_is_written_while_a_product_reads_it(label: str, tmp_path: Path) -> None:
    for launch in launches_of(label):
        for loop in loops(compile_for_h200(launch).cubin, tmp_path):
            assert not overwritten(loop), launch.name


def loops_with_products(label: str, folder: Path) -> list[list[str]]:
    """Those of both products of the experts for many pairs, at least one of each."""
    launches = {launch.name: launch for launch in launches_of(label)}
    found = []
    for name in ("gate_up_many_pdl", "down_many_pdl"):
        all_loops = loops(compile_for_h200(launches[name]).cubin, folder)
        with_products = [loop for loop in all_loops if any(line.startswith("HGMMA") for line in loop)]
        assert with_products
        found += with_products
    return found


@compiled_only
@pytest.mark.parametrize("label", ["experts, chunk", "experts half, nf4, chunk", "experts half, bf16, chunk"])
def test_loops_with_products_are_found(label: str, tmp_path: Path) -> None:
    loops_with_products(label, tmp_path)


@compiled_only
@pytest.mark.parametrize("label", ["experts half, nf4, batch of 64", "experts half, nf4, chunk"])
def test_unpacked_weights_stay_in_their_registers(label: str, tmp_path: Path) -> None:
    """No loop with a product stores to shared memory what it has unpacked (nf4.carried)."""
    for loop in loops_with_products(label, tmp_path):
        written = [instruction for instruction in loop if re.match(r"STS\S*\.128 ", instruction)]
        assert not written


def test_a_register_that_a_product_reads_is_found() -> None:
    product = "HGMMA.64x16x16.F32.BF16 R24, R32, gdesc[UR8], R24, gsb0"
    load, wait = "LDS.64 R34, [R19+UR9+0x4000]", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    assert overwritten([load, wait, product]) == [load]
    assert overwritten([wait, load, product]) == []
    assert overwritten([load, "WARPGROUP.DEPBAR.LE gsb0, 0x1", product]) == [load]
    matrix = "LDSM.16.M88.4 R30, [R19+UR9+0x4000]"
    assert overwritten([matrix, wait, product]) == [matrix]
    assert overwritten(["LDS.64 R36, [R19+UR9+0x4000]", wait, product]) == []


@compiled_only
def test_shipped_tuned_configs_compile() -> None:
    """All of them that are not the kernels' own guess."""
    compiled = 0
    for op, arguments in calls_of_20b(1) + calls_of_20b(8):
        space = kernels()[op].config_space(OPS[op].arguments((), arguments), "sm_90")
        for tuned in shipped_tuned_configs():
            config = tuned.find(space)
            if config is None or config == space.default:
                continue
            for launch in record(op, arguments, (tuned,)):
                assert compile_for_h200(launch).shared <= shared_memory("sm_90")
                compiled += 1
    assert compiled > 5


if __name__ == "__main__":  # prints the resources of each kernel, for whoever changes one
    sys.exit(pytest.main([__file__, "-q", "-s"]))
