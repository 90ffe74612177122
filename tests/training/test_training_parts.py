"""Parts of the training step by themselves: the gradient of the activation, the order of PEFT's tensors."""

from __future__ import annotations

import torch

from gptoss_export.model.ops.experts import swiglu
from gptoss_export.model.training.experts import swiglu_backward
from gptoss_export.model.training.lora import TARGETS, Training
from gptoss_export.model.training.peft import from_peft, to_peft


def test_gradient_of_swiglu_is_that_of_autograd_beyond_the_limits_too() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = (6 * torch.randn(50, 64, generator=random, dtype=torch.float64)).requires_grad_()
    grad = torch.randn(50, 32, generator=random, dtype=torch.float64)
    (expected,) = torch.autograd.grad(swiglu(hidden, 1.702, 7.0), hidden, grad)
    assert int((hidden.abs() > 7).sum()) > 100
    torch.testing.assert_close(swiglu_backward(grad, hidden.detach(), 1.702, 7.0), expected, rtol=1e-6, atol=1e-6)


def test_factors_of_experts_are_where_peft_has_them() -> None:
    """Row e r + k of A is row k of expert e; column k E + e of B is column k of expert e."""
    experts, rank, inputs, outputs = 3, 2, 5, 4
    name = "model.layers.0.mlp.experts.down_proj"
    factors = {
        f"{name}.lora_A": torch.rand(experts, rank, inputs),
        f"{name}.lora_B": torch.rand(experts, outputs, rank),
    }
    stored = to_peft(factors, Training(8, rank, 4.0, TARGETS))
    prefix = "base_model.model.model.layers.0.mlp.experts"
    a, b = stored[f"{prefix}.lora_A.weight"], stored[f"{prefix}.lora_B.weight"]
    for expert in range(experts):
        for k in range(rank):
            assert torch.equal(a[expert * rank + k], factors[f"{name}.lora_A"][expert, k])
            assert torch.equal(b[:, k * experts + expert], factors[f"{name}.lora_B"][expert, :, k])
    for value, again in zip(factors.values(), (a, b), strict=True):
        assert torch.equal(from_peft(again, tuple(value.shape)), value)
