"""An op is one file and one line, and a kernel is optional: two ops are added from outside of the package.

`gptoss::doubled` has no kernel. `gptoss::shifted` has one in plain Triton, which a package offers by entry point. Ops
are registered with PyTorch for the whole process, so each check runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

OPS_FILE = """
import torch

from gptoss_export.model.ops import Case, Op


def cases(device, dtype):
    for rows in 3, 40:
        yield Case(f"{rows} rows", {"x": torch.arange(rows, dtype=dtype, device=device), "by": 2})


def fake(x, by):
    return x.new_empty(x.shape)


def doubled(x: torch.Tensor, by: int) -> torch.Tensor:
    return x * 2 + by


def shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    return x + by


DOUBLED = Op("doubled", doubled, fake, cases)
SHIFTED = Op("shifted", shifted, fake, cases)
"""

KERNELS_FILE = """
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel
from gptoss_export.kernels.launch_config import ConfigSpace, shape_of, unflatten


class Shift(NamedTuple):
    block: int
    warps: int


@triton.jit
def _shift(x, out, BY: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < COUNT) + BY, mask=i < COUNT)


@triton_op("gptoss_triton::shifted", mutates_args={})
def shifted(x: torch.Tensor, by: int, config: list[int], arch: str) -> torch.Tensor:
    (shift,) = unflatten(config, Shift)
    out, count = torch.empty_like(x), x.numel()
    wrap_triton(_shift)[(triton.cdiv(count, shift.block),)](
        x, out, BY=by, COUNT=count, BLOCK=shift.block, num_warps=shift.warps
    )
    return out


def config_space(arguments, arch):
    x = arguments["x"]
    return ConfigSpace(
        name="shifted",
        shape=shape_of(x.dtype, count=x.numel()),
        scaled=("count",),
        default={"shift": Shift(block=16, warps=1)},
        options={"shift": {"block": (16, 32), "warps": (1, 2)}},
    )


KERNELS = {"shifted": Kernel(shifted, config_space, lambda arguments: arguments["x"].numel() <= 32)}
"""

PRELUDE = """
import dataclasses
import pytest
import torch
from extension.ops import DOUBLED, SHIFTED
from gptoss_export.compiler.export import TracedProgram
from gptoss_export.compiler.lower import kernel_implementations, launch_implementations, lower
from gptoss_export.compiler.lower import reference_implementations
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.ops import OPS

patch = pytest.MonkeyPatch()
for op in DOUBLED, SHIFTED:
    patch.setitem(OPS, op.name, op.define())


class Both(torch.nn.Module):
    def forward(self, x):
        return torch.ops.gptoss.shifted(torch.ops.gptoss.doubled(x, 1), 3)


def lowered(count, implementations):
    x = torch.arange(count, dtype=torch.float32)
    exported = torch.export.export(Both(), (x,), strict=False)
    assert {"gptoss::doubled", "gptoss::shifted"} <= {node.target.name() for node in exported.graph.nodes
                                                      if isinstance(node.target, torch._ops.OpOverload)}
    after = lower(TracedProgram(NAMED, None, exported, (None,)), implementations).exported
    return x, after, [str(node.target) for node in after.graph.nodes if node.op == "call_function"]


class NAMED:
    name = "both"
"""

LOWERED = """
chooser = ConfigChooser("sm_90")
x, exported, targets = lowered(8, kernel_implementations(chooser))
assert "gptoss_triton.shifted.default" in targets and "aten.mul.Tensor" in targets, targets
assert not [target for target in targets if target.startswith("gptoss.")], targets
(node,) = [node for node in exported.graph.nodes if str(node.target) == "gptoss_triton.shifted.default"]
given = (*node.args, *node.kwargs.values())
assert [16, 1] in [list(value) for value in given if isinstance(value, (list, tuple))] and "sm_90" in given, given
assert chooser.chosen == {"shifted (count 8, dtype float32)": None}

# A call that the kernel does not cover, and a target without kernels: the references serve both ops.
for x, exported, targets in lowered(40, kernel_implementations(chooser)), lowered(8, reference_implementations()):
    assert not [target for target in targets if "gptoss" in target], targets
    assert torch.equal(exported.module()(x), x * 2 + 4)
assert len(chooser.chosen) == 1

# An op of which the compiler of the target needs the launches.
patch.setitem(OPS, "shifted", dataclasses.replace(SHIFTED, as_kernel=True))
x, exported, targets = lowered(8, launch_implementations(chooser))
assert "triton_kernel_wrapper_mutation" in " ".join(targets) or "triton_kernel_wrapper_functional" in " ".join(targets)
print("DONE")
"""

TUNED = """
from gptoss_plugins.arch import INTERPRETER
for op in DOUBLED, SHIFTED:
    for label, arguments in op.cases(torch.device("cpu"), torch.float32):
        torch.library.opcheck(op.overload, tuple(arguments.values()))
        drawn = op.draw(arguments, torch.Generator().manual_seed(0), position=3)
        assert drawn["x"].shape == arguments["x"].shape and drawn["by"] == 2
        assert not torch.equal(drawn["x"], arguments["x"])
        if op is SHIFTED and kernels()["shifted"].covers(drawn):
            space = kernels()["shifted"].config_space(drawn, INTERPRETER)
            for block in space.options["shift"]["block"]:
                config = space.default["shift"]._replace(block=block)
                got = kernels()["shifted"].op(**drawn, config=list(config), arch=INTERPRETER)
                assert torch.equal(got, op.reference(**drawn))
                print(label, block)
print("DONE")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the package, and the metadata that an installation would write."""
    code, metadata = tmp_path / "extension", tmp_path / "extension-1.0.dist-info"
    code.mkdir()
    metadata.mkdir()
    (code / "__init__.py").touch()
    (code / "ops.py").write_text(OPS_FILE)
    (code / "kernels.py").write_text(KERNELS_FILE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: extension\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[gptoss_export.kernels]\nextension = extension.kernels:KERNELS\n")
    return tmp_path


def run(package: Path, code: str, **environment: str) -> str:
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_op_is_lowered_by_its_kernel_or_its_reference(package: Path) -> None:
    assert run(package, LOWERED).endswith("DONE\n")


def test_an_op_brings_what_tuning_and_tests_need(package: Path) -> None:
    """Its cases, drawn arguments, and a kernel that takes every launch config of its space."""
    assert run(package, TUNED, TRITON_INTERPRET="1") == "3 rows 16\n3 rows 32\nDONE\n"


def test_a_second_kernel_for_an_op_is_refused(package: Path) -> None:
    """The error names both packages."""
    metadata = package / "another-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text("[gptoss_export.kernels]\nanother = extension.kernels:KERNELS\n")
    code = """
from gptoss_export.errors import LoweringError
with pytest.raises(LoweringError, match="shifted: offered by package (another|extension) and by package (another|ext)"):
    kernels()
print("DONE")
"""
    assert run(package, code) == "DONE\n"
