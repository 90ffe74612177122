"""gptoss::unembed: logits of some hidden states, the most likely token of each, and the sum that normalises them.

    logits    = norm(x) @ weight.T
    top         = index of the largest logit, the lowest of equals
    top_logprob = its log probability
    log_total   = log sum exp(logits);  log p(token) = logits[token] - log_total

The choice comes with the product, which has every logit at hand: a greedy step then need not read the logits again.

Shapes
  x            [R, H] float32, the residual stream after the last layer
  norm_weight  [H]
  weight       [V, H]
  eps          float
  returns      logits [R, V] float32, top [R] int64, top_logprob [R] float32, log_total [R] float32
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from . import draw
from .norm import rms_norm
from .op import Case, Op


def reference(
    x: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = F.linear(rms_norm(x, norm_weight, eps).to(weight.dtype), weight).float()
    top, log_total = logits.argmax(dim=-1), logits.logsumexp(dim=-1)
    return logits, top, logits.gather(-1, top[:, None]).squeeze(-1) - log_total, log_total


def fake(
    x: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = x.size(0)
    logits, top = x.new_empty(rows, weight.size(0)), x.new_empty(rows, dtype=torch.int64)
    return logits, top, x.new_empty(rows), x.new_empty(rows)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One row to many, sizes that are no multiples of a tile, equal logits."""
    for label, (rows, hidden, vocabulary) in {
        "one row": (1, 96, 300),
        "equal logits": (1, 64, 200),
        "eight rows": (8, 64, 77),
        "rows of a batch": (20, 160, 512),
        "odd vocabulary": (5, 96, 517),
        "many rows": (130, 64, 150),
    }.items():
        random = torch.Generator().manual_seed(len(label))
        x = torch.randn(rows, hidden, generator=random)
        weight = torch.randn(vocabulary, hidden, generator=random) * hidden**-0.5
        if label == "equal logits":
            weight[[33, 150, 199]] = 3 * x[0] / hidden
        norm = 1 + 0.1 * torch.randn(hidden, generator=random)
        arguments = {
            "x": x.to(device),
            "norm_weight": norm.to(device, dtype),
            "weight": weight.to(device, dtype),
            "eps": 1e-5,
        }
        yield Case(label, arguments)


OP = Op(name="unembed", reference=reference, fake=fake, cases=cases, realistic={"weight": draw.matrix})
