"""What a call must not see changes no bit of a Triton kernel's result: NaN and infinity in rows that no query sees, in
other slots, in padding and in later tokens (tests/unseen.py).

The kernels run in Triton's interpreter, in a process that is this file run as a script. test_on_gpu.py has the same
for all cases on a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gptoss_plugins.arch import INTERPRETER
from interpreter_process import found_by_interpreter
from kernel_cases import CPU, attention_arguments, covered_cases, expert_arguments, is_covered
from unseen import FILLS, Unseen, marks_keys

from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.expert_formats import BF16, MXFP4, NF4_OF_32
from gptoss_export.model.ops import OPS

INTERPRETED = "nan", "inf"


def attention_cases() -> dict[str, dict[str, Any]]:
    """Small ones, for the interpreter: decode and chunk, odd sizes, padding, past the window, over pages."""
    names = "slots", "kv_heads", "group", "dim", "page", "count", "window", "starts", "length"
    shapes = {
        "decode, shares": (3, 1, 3, 16, 64, 11, 280, [700, 30, -1], 1),
        "decode, head_dim 24, all of it": (2, 2, 2, 24, 14, 5, 0, [69], 1),
        "decode, idle": (2, 1, 2, 16, 24, 1, 16, [-1], 1),
        "chunk, window": (2, 1, 2, 16, 16, 11, 19, [130], 37),
        "chunk, tiles without masks": (1, 1, 2, 16, 64, 3, 0, [70], 21),
    }
    found = {}
    for label, shape in shapes.items():
        given = dict(zip(names, shape, strict=True))
        valid = given["length"] - 4 if given["length"] > 1 else None
        found[label] = attention_arguments(CPU, torch.float32, **given, valid=valid)
    return found


def sublayer_cases() -> dict[str, dict[str, Any]]:
    """One token behind its window, two sequences of three tokens each of which the last is padding."""
    found = {}
    for label, starts, length in ("one token, window", [200], 1), ("two short chunks, padded", [30, 4], 3):
        inner = attention_arguments(
            CPU, torch.float32, slots=3, kv_heads=1, group=2, dim=16, page=8, count=26, window=16, starts=starts,
            length=length, valid=2,
        )  # fmt: skip
        random = torch.Generator().manual_seed(length)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random)  # noqa: B023

        tokens = len(starts) * length
        arguments = inner | {
            "x": normal(tokens, 32),
            "norm_weight": normal(32),
            "qkv_weight": normal(64, 32),
            "qkv_bias": normal(64),
            "o_weight": normal(32, 32),
            "o_bias": normal(32),
            "cos": normal(tokens, 8),
            "sin": normal(tokens, 8),
            "eps": 1e-5,
            "places": None,
            "ranks": 1,
        }
        del arguments["query"]
        found[label] = OPS["attention_sublayer"].arguments((), arguments)
    return found


def expert_cases() -> dict[str, dict[str, Any]]:
    """Few pairs and many of each format: a token without experts, and one that lacks its second."""
    found = {}
    for form in MXFP4, NF4_OF_32, BF16:
        for pairs, tokens in ("few", 2), ("many", 17):
            given = expert_arguments(
                CPU, torch.float32, tokens=tokens, hidden=32, inter=32, experts=3, choices=2, form=form
            )
            given["expert_indices"][0], given["expert_indices"][1, 1] = -1, -1
            found[f"{form.name}, {pairs} pairs"] = given
    return found


def router_cases() -> dict[str, dict[str, Any]]:
    """Three tokens, of which one is padding."""
    given = expert_arguments(CPU, torch.float32, tokens=3, hidden=32, inter=32, experts=3, choices=1)
    arguments = {key: value for key, value in given.items() if key not in ("routing_weights", "expert_indices")} | {
        "norm_weight": torch.ones(32),
        "router_weight": given["x"].clone(),
        "router_bias": torch.zeros(3),
        "positions": torch.tensor([4, -1, 5]),
        "choices": 1,
        "eps": 1e-5,
        "places": None,
        "ranks": 1,
    }
    return {"one is padding": OPS["experts_sublayer"].arguments((), arguments)}


# Not unembed, whose rows are tried on a GPU: the argmax of a row of NaN is an error of Triton 3.9's interpreter.
CASES = {
    "sink_attention": attention_cases(),
    "attention_sublayer": sublayer_cases(),
    "experts": expert_cases(),
    "experts_sublayer": router_cases(),
    "kv_write": covered_cases("kv_write", CPU, torch.float32),
}
KEYS = [(name, label) for name, cases in CASES.items() for label in cases]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Whether the bits are the same, by 'op/label/fill'. One test process finds it out for all."""

    from artifacts import made_once  # which the process of the interpreter has no path to

    def make(root: Path) -> None:
        (root / "found.json").write_text(json.dumps(found_by_interpreter(__file__)), encoding="utf-8")

    return json.loads((made_once(tmp_path_factory, "unseen", make) / "found.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("fill", INTERPRETED)
@pytest.mark.parametrize(("name", "label"), KEYS)
def test_interpreted_kernel_does_not_see_it(interpreted: dict[str, bool], name: str, label: str, fill: str) -> None:
    assert interpreted[f"{name}/{label}/{fill}"]


def test_a_value_that_is_not_finite_marks_its_key(interpreted: dict[str, bool]) -> None:
    assert interpreted["keys are marked"]


@pytest.mark.parametrize(("name", "label"), KEYS)
def test_cases_can_fail(name: str, label: str) -> None:
    assert is_covered(name, CASES[name][label]) and Unseen(name, CASES[name][label]).can_fail


def _interpret() -> None:
    torch.set_num_threads(1)
    found = {}
    for name, label in KEYS:
        kernel = kernels()[name].bind(OPS[name], ConfigChooser(INTERPRETER, ()))
        same = Unseen(name, CASES[name][label]).same_bits(kernel, [FILLS[fill] for fill in INTERPRETED])
        found |= {f"{name}/{label}/{fill}": bits for fill, bits in zip(INTERPRETED, same, strict=True)}
    write = kernels()["kv_write"].bind(OPS["kv_write"], ConfigChooser(INTERPRETER, ()))
    found["keys are marked"] = marks_keys(CASES["kv_write"]["head_dim 80"], write)
    print(json.dumps(found))


if __name__ == "__main__":
    _interpret()
