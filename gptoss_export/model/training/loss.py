"""The loss of a training step, and its gradient: cross entropy of the logits.

The logits of all tokens would be the largest tensor by far. So a few tokens are taken at a time: their logits, their
part of the loss, and at once the gradient of their hidden states, since the loss is where backward begins.

The logit of a target is computed once more, from its row of the unembedding. If it were read from the logits, a
compiler that puts the losses of all tokens into one kernel would keep all logits for it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..decoder import RMSNorm
from ..ops.norm import rms_norm
from .lora import IGNORED
from .norm import rms_norm_backward

_TOKENS = 512  # at a time: with 201,088 logits each, 412 MB in float32


def cross_entropy(
    x: torch.Tensor, norm: RMSNorm, unembedding: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over the tokens that count, [] float32, and its gradient [T, H] for the residual stream x [T, H], both
    float32. unembedding [V, H]; targets [T] int64: the next token of each one, or IGNORED."""
    counts = targets != IGNORED
    number = counts.sum().clamp(min=1).float()
    loss = torch.zeros((), dtype=torch.float32, device=x.device)
    grads = []
    vocabulary = torch.arange(unembedding.size(0), device=x.device)
    for some, wanted, counted in zip(x.split(_TOKENS), targets.split(_TOKENS), counts.split(_TOKENS), strict=True):
        normed = rms_norm(some, norm.weight, norm.eps).to(unembedding.dtype)
        logits = F.linear(normed, unembedding).float()
        log_total = logits.logsumexp(dim=-1, keepdim=True)
        target = torch.where(counted, wanted, 0)
        of_target = (normed.float() * unembedding[target].float()).sum(dim=-1)
        loss = loss + torch.where(counted, log_total.squeeze(-1) - of_target, 0.0).sum()
        likelihoods = torch.exp(logits - log_total)
        share = (counted.float() / number).unsqueeze(-1)
        grad_logits = torch.where(vocabulary == target.unsqueeze(-1), likelihoods - 1, likelihoods) * share
        grad_normed = grad_logits.to(unembedding.dtype) @ unembedding
        grads.append(rms_norm_backward(grad_normed.float(), some, norm.weight, norm.eps))
    return loss / number, torch.cat(grads)
