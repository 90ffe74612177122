"""The ops of LoRA adapters against the products of merged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptoss_export.compiler.lower import kernel_implementations
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.model.expert_weights import is_mxfp4, unpack
from gptoss_export.model.mxfp4 import interleave
from gptoss_export.model.ops import OPS
from gptoss_export.verification.metric import TOLERANCES, deviation

FACTORS = ("gate_up_a", "gate_up_b", "down_a", "down_b", "adapter")
CASES = {
    f"{name}: {case.label}": (name, case.arguments)
    for name in ("adapter_delta", "adapted_experts")
    for case in OPS[name].cases(torch.device("cpu"), torch.float32)
}


def labels(op: str) -> list[str]:
    return [label for label, (name, _) in CASES.items() if name == op]


@pytest.mark.parametrize("label", labels("adapter_delta"))
def test_each_token_has_the_delta_of_its_own_adapter(label: str) -> None:
    arguments = CASES[label][1]
    found = OPS["adapter_delta"].reference(**arguments)
    assert isinstance(found, torch.Tensor)
    for row, x, slot in zip(found, arguments["x"], arguments["adapter"].tolist(), strict=True):
        wanted = torch.zeros_like(row) if slot < 0 else arguments["b"][slot] @ (arguments["a"][slot] @ x)
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-5)
        assert bool(row.any()) == (slot >= 0)


def of_adapter(arguments: dict[str, Any], slot: int) -> dict[str, Any]:
    """Arguments of gptoss::experts with the weights of an adapter merged: plain matrices in float32."""
    given = {name: value for name, value in arguments.items() if name not in FACTORS}
    for matrix in "gate_up", "down":
        names = [f"{matrix}_{part}" for part in ("weight", "scales", "table")]
        weight = unpack(*(arguments[name] for name in names))
        if slot >= 0:
            weight = weight + arguments[f"{matrix}_b"][slot] @ arguments[f"{matrix}_a"][slot]
        given |= dict(zip(names, (weight, None, None), strict=True))
    return given


@pytest.mark.parametrize("label", labels("adapted_experts"))
def test_adapted_experts_are_those_of_merged_weights(label: str) -> None:
    arguments = CASES[label][1]
    found = OPS["adapted_experts"].reference(**arguments)
    assert isinstance(found, torch.Tensor)
    slots = arguments["adapter"].unique().tolist()
    for slot in slots:
        merged = OPS["experts"].reference(**of_adapter(arguments, slot))
        assert isinstance(merged, torch.Tensor)
        tokens = arguments["adapter"] == slot
        assert deviation(found[tokens], merged[tokens]).within(TOLERANCES[torch.float32])
    used = (arguments["expert_indices"] >= 0).any(dim=1) & (arguments["adapter"] >= 0)
    plain = OPS["experts"].reference(**of_adapter(arguments, -1))
    assert isinstance(plain, torch.Tensor)
    assert not used.any() or not torch.allclose(found[used], plain[used], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("label", labels("adapted_experts"))
def test_tokens_without_an_adapter_have_the_bits_of_plain_experts(label: str) -> None:
    arguments = CASES[label][1]
    none = torch.full_like(arguments["adapter"], -1)
    found = OPS["adapted_experts"].reference(**arguments | {"adapter": none})
    given = {name: value for name, value in arguments.items() if name not in FACTORS}
    plain = OPS["experts"].reference(**given)
    assert isinstance(found, torch.Tensor) and isinstance(plain, torch.Tensor)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("label", labels("adapted_experts"))
def test_on_a_gpu_the_reference_gets_the_codes_as_the_checkpoint_has_them(label: str) -> None:
    """Loading a runner interleaves them, and no kernel reads them for this op."""
    pytest.importorskip("triton")
    arguments = dict(CASES[label][1])
    wanted = OPS["adapted_experts"].reference(**arguments)
    for matrix in "gate_up", "down":
        if is_mxfp4(arguments[f"{matrix}_scales"]):
            arguments[f"{matrix}_weight"] = interleave(arguments[f"{matrix}_weight"])
    found = kernel_implementations(ConfigChooser("sm_90"))["adapted_experts"](**arguments)
    assert isinstance(wanted, torch.Tensor) and torch.equal(found, wanted)
