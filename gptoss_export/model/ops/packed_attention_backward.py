"""gptoss::packed_attention_backward: the gradients of gptoss::packed_attention.

With p[i, j] the weights of the softmax, which follow from the scores and log_total, and g the gradient of the result:

    delta[i] = g[i].out[i]
    ds[i, j] = p[i, j] (g[i].v[j] - delta[i])
    dq[i]    = scale sum_j ds[i, j] k[j]
    dk[j]    = scale sum_i ds[i, j] q[i]
    dv[j]    = sum_i p[i, j] g[i]
    dsink[h] = -sum_i exp(sinks[h] - log_total[i]) delta[i]

(Dao et al. 2022, arXiv:2205.14135, appendix B.4; the sink is one more key, whose value is zero.)

Shapes
  grad        [T, Hq, D]     gradient of out
  query, key, value, sinks, positions, window, scale   as in gptoss::packed_attention
  out, log_total             its results
  returns     dq [T, Hq, D], dk and dv [T, Hkv, D], dtype of query; dsinks [Hq] float32

Sums are float32. A kernel adds in an order that does not depend on the run, so that equal inputs have equal gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from . import packed_attention
from .op import Case, Op
from .packed_attention import packed_positions, scores, spans


def reference(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    out: torch.Tensor,
    log_total: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The op's meaning in plain PyTorch, in float32."""
    tokens, heads, head_dim = query.shape
    kv_heads, group = key.size(1), heads // key.size(1)

    def grouped(each: torch.Tensor) -> torch.Tensor:
        return each.float().view(-1, kv_heads, group, *each.shape[2:])

    delta = (grad.float() * out.float()).sum(dim=-1)  # [T, Hq]
    dsinks = -(torch.exp(sinks.float() - log_total) * delta).sum(dim=0)
    dqs = []
    dk = torch.zeros(tokens, kv_heads, head_dim, dtype=torch.float32, device=query.device)
    dv = torch.zeros_like(dk)
    for first, start, end in spans(tokens, window):
        found = scores(query[start:end], key[first:end], positions[start:end], first, start, window, scale)
        weights = torch.exp(found - grouped(log_total[start:end]).permute(1, 2, 0).unsqueeze(-1))
        g = grouped(grad[start:end])
        dp = torch.einsum("qhgd,khd->hgqk", g, value[first:end].float())
        ds = weights * (dp - grouped(delta[start:end]).permute(1, 2, 0).unsqueeze(-1)) * scale
        dq = torch.einsum("hgqk,khd->qhgd", ds, key[first:end].float())
        dqs.append(dq.reshape(end - start, heads, head_dim).to(query.dtype))
        around = (0, 0, 0, 0, first, tokens - end)
        dk = dk + F.pad(torch.einsum("hgqk,qhgd->khd", ds, grouped(query[start:end])), around)
        dv = dv + F.pad(torch.einsum("hgqk,qhgd->khd", weights, g), around)
    return torch.cat(dqs), dk.to(key.dtype), dv.to(value.dtype), dsinks


def fake(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor, *_: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dsinks = sinks.new_empty(sinks.shape, dtype=torch.float32)
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), dsinks


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The cases of the forward op, with their results."""
    for label, given in packed_attention.cases(device, dtype):
        random = torch.Generator().manual_seed(len(label) + 1)
        out, log_total = packed_attention.reference(**given)
        before = ("query", "key", "value", "sinks")
        arguments = {
            "grad": torch.randn(out.shape, generator=random).to(device, dtype),
            **{name: given[name] for name in before},
            "out": out,
            "log_total": log_total,
            **{name: value for name, value in given.items() if name not in before},
        }
        yield Case(label, arguments)


OP = Op(
    name="packed_attention_backward",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={"positions": packed_positions},
    as_kernel=True,
)
