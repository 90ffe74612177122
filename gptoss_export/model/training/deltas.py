"""What LoRA factors add to a product, and their gradients: of one matrix, and of the matrices of all experts.

With y = s B (A x) and g the gradient of y:   dB = s g (A x)^T,   dA = s (B^T g) x^T,   dx = s A^T (B^T g)

Products are in the dtype of x, gradients of the factors are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional as F

Gradients: TypeAlias = dict[str, torch.Tensor]  # of factors, by their name in the layer, such as q_proj.lora_A


@dataclass(frozen=True)
class Delta:
    """The factors of one matrix: a [r, in], b [out, r], float32."""

    name: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def add(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y [T, out], plus the delta of x [T, in]."""
        inner = F.linear(x, self.a.to(x.dtype)) * self.scale
        return y + F.linear(inner, self.b.to(x.dtype))

    def backward(self, grad: torch.Tensor, x: torch.Tensor, gradients: Gradients) -> torch.Tensor:
        """The part [T, in] of the gradient of x, for a gradient [T, out]; those of the factors go to `gradients`."""
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        inner, grad_inner = F.linear(x, a) * self.scale, (grad @ b) * self.scale
        gradients[f"{self.name}.lora_A"] = (grad_inner.mT @ x).float()
        gradients[f"{self.name}.lora_B"] = (grad.mT @ inner).float()
        return grad_inner @ a


@dataclass(frozen=True)
class ExpertDelta:
    """The factors of a matrix of all experts: a [E, r, in], b [E, out, r], float32. Rows are sorted by expert."""

    name: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def add(self, y: torch.Tensor, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """y [N, out], plus the delta of x [N, in]."""
        inner = grouped_linear(x, self.a.to(x.dtype), ends) * self.scale
        return grouped_linear(inner, self.b.to(x.dtype), ends, added=y)

    def backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        ends: torch.Tensor,
        gradients: Gradients,
        share: torch.Tensor | None,
        grad_x: torch.Tensor,
    ) -> torch.Tensor:
        """grad_x [N, in], plus the part of the gradient of x, for a gradient [N, out] without `share`.

        share  [N, 1] by which the gradient of each row is multiplied for the factors; None: 1
        """
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        inner = grouped_linear(x, a, ends) * self.scale
        grad_inner = grouped_linear(grad, b, ends, transposed=True) * self.scale
        of_rows = grad_inner if share is None else (grad_inner.float() * share).to(x.dtype)
        shared = inner if share is None else (inner.float() * share).to(x.dtype)
        gradients[f"{self.name}.lora_A"] = torch.ops.gptoss.grouped_outer(of_rows, x, ends)
        gradients[f"{self.name}.lora_B"] = torch.ops.gptoss.grouped_outer(grad, shared, ends)
        return grouped_linear(grad_inner, a, ends, transposed=True, added=grad_x)


def grouped_linear(
    x: torch.Tensor,
    matrices: torch.Tensor,
    ends: torch.Tensor,
    transposed: bool = False,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    """gptoss::grouped_linear with plain matrices [E, M, K]."""
    return torch.ops.gptoss.grouped_linear(x, matrices, None, None, None, added, ends, transposed)
