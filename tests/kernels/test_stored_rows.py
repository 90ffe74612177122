"""Rows of each format times a vector, as the kernels for few pairs multiply them, in Triton's interpreter and on a GPU.

The rows are longer than what a warp loads at a time, and end within a piece. A whole call with such rows takes the
interpreter minutes.
"""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from gptoss_plugins.arch import INTERPRETER, has_inline_assembly
from gptoss_plugins.arranged import arrange, unit_of
from gptoss_plugins.stored import stored_as
from gptoss_plugins.stored_rows import dot_stored_rows, lanes_for, load_stored_rows
from interpreter_process import found_by_interpreter
from kernel_cases import DTYPES, expert_arguments

from gptoss_export.model.expert_formats import FORMATS
from gptoss_export.model.expert_weights import is_mxfp4, unpack
from gptoss_export.model.mxfp4 import interleave

ROWS = 8
# label: (format, columns, warps)
SHAPES = {
    "mxfp4": ("mxfp4", 1056, 1),
    "nf4": ("nf4", 1216, 1),
    "nf4-32": ("nf4-32", 1056, 1),
    "bf16": ("bf16", 288, 1),
    "bf16, four warps": ("bf16", 1056, 4),
}
LARGEST = 1e-6  # of the magnitudes that are added


@triton.jit
def _product(
    weight,
    scales,
    table,
    x,
    undo,
    out,
    R: tl.constexpr,
    LENGTH: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    EXACT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    row = tl.arange(0, R)
    rows = load_stored_rows(weight, scales, row.to(tl.int64), True, LENGTH, FORMAT, GROUP, LANES)
    sums = dot_stored_rows(rows, table, x, True, LENGTH, FORMAT, LANES, EXACT, ASSEMBLY)
    tl.store(out + row, tl.sum(sums, 1) * tl.load(undo))


def deviation(device: torch.device, dtype: torch.dtype, name: str, columns: int, warps: int) -> float:
    """The largest difference of a product from that in float64, relative to the magnitudes that are added."""
    given = expert_arguments(
        device, dtype, tokens=1, hidden=columns, inter=32, experts=1, choices=1, form=FORMATS[name]
    )
    weight, scales, table, x = (given[key] for key in ("gate_up_weight", "gate_up_scales", "gate_up_table", "x"))
    arch = INTERPRETER
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        arch = f"sm_{major}{minor}"
    stored = stored_as(scales, columns)
    arranged = arrange(x, stored, arch)
    assert arranged.x.dtype == torch.float32 and arranged.undo.item() == unit_of(stored)
    out = torch.empty(ROWS, device=device)
    _product[(1,)](
        interleave(weight) if is_mxfp4(scales) else weight,
        scales,
        table,
        *arranged,
        out,
        R=ROWS,
        LENGTH=columns,
        **stored.constants,
        LANES=lanes_for(stored, warps),
        EXACT=True,
        ASSEMBLY=has_inline_assembly(arch),
        num_warps=warps,
    )
    products = unpack(weight, scales, table)[0, :ROWS].double() * x.double()
    return ((out - products.sum(1)).abs() / products.abs().sum(1)).max().item()


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    found: dict[str, float] = found_by_interpreter(__file__)
    return found


@pytest.mark.parametrize("label", SHAPES)
def test_interpreted_rows_are_multiplied(interpreted: dict[str, float], label: str) -> None:
    assert interpreted[label] < LARGEST


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("label", SHAPES)
def test_rows_are_multiplied(label: str, dtype: str) -> None:
    assert deviation(torch.device("cuda"), DTYPES[dtype], *SHAPES[label]) < LARGEST


if __name__ == "__main__":
    cpu = torch.device("cpu")
    print(json.dumps({label: deviation(cpu, torch.float16, *shape) for label, shape in SHAPES.items()}))
