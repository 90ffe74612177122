"""The router of a chunk computes in float32 for weights of any dtype, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

from gptoss_plugins.arch import INTERPRETER
from gptoss_plugins.router_chunk import route_chunk
from interpreter_process import found_by_interpreter

CHOICES, WORDS, EPS = 4, 8, 1e-5
SHAPES = {"two programs": (30, 96, 5), "many experts": (17, 320, 37)}  # tokens, hidden, experts
LARGEST = 1e-5  # of a share: a product of TF32 alone is off by 1e-3


def deviation(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int, experts: int) -> float:
    """The largest difference of a share from that in float64. Choices differ nowhere."""
    draw = torch.Generator().manual_seed(11)
    x = torch.randn(tokens, hidden, generator=draw) * 3
    norm_weight = (1 + 0.3 * torch.randn(hidden, generator=draw)).to(dtype)
    weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((experts, hidden), (experts,)))
    positions = torch.arange(tokens)
    arguments = [tensor.to(device) for tensor in (x, norm_weight, weight, bias, positions)]
    arch = INTERPRETER
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        arch = f"sm_{major}{minor}"
    _, chosen, shares = route_chunk(*arguments, CHOICES, EPS, WORDS, arch)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt() * norm_weight.double()
    logits, expected = torch.topk(exact @ weight.double().T + bias.double(), CHOICES)
    assert torch.equal(chosen.cpu().long(), expected)
    return (shares.cpu().double() - logits.softmax(-1)).abs().max().item()


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    found: dict[str, float] = found_by_interpreter(__file__)
    return found


@pytest.mark.parametrize("label", SHAPES)
def test_interpreted_shares_are_those_of_float32(interpreted: dict[str, float], label: str) -> None:
    assert interpreted[label] < LARGEST


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label", SHAPES)
def test_shares_are_those_of_float32(label: str, dtype: torch.dtype) -> None:
    assert deviation(torch.device("cuda"), dtype, *SHAPES[label]) < LARGEST


if __name__ == "__main__":
    cpu = torch.device("cpu")
    print(json.dumps({label: deviation(cpu, torch.float16, *shape) for label, shape in SHAPES.items()}))
