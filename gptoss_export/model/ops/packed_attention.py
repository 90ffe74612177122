"""gptoss::packed_attention: causal attention of whole sequences that are packed in a row, with a learned sink.

A training step computes it. There is no KV cache: the keys of a token are those of the row.

    out[i] = sum_j exp(s[i, j] - m) v[j] / total[i],   s[i, j] = scale * q[i].k[j]
    total[i] = sum_j exp(s[i, j] - m) + exp(sinks[h] - m)

Token i sees the tokens j of its own sequence with j <= i, and on sliding layers only those with j > i - window. Its
sequence begins at token i - positions[i].

Shapes
  query       [T, Hq, D]
  key, value  [T, Hkv, D]
  sinks       [Hq]
  positions   [T] int64      place of each token in its sequence: 0, 1, 2, ... and 0 again where the next one begins.
                             Padding is sequences of one token: 0, 0, 0, ...
  window      int            0: see everything
  scale       float
  returns     out [T, Hq, D], dtype of query; log_total [T, Hq] float32, m + log(total), which the backward op reads

Softmax and sums are float32. gptoss::packed_attention_backward has the gradients.

The reference takes a few queries at a time, so that its scores take little memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .draw import Draw
from .op import Case, Op

QUERIES = 256  # that the reference takes at a time


def spans(tokens: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Runs of queries, and the first key that they may see: first key, first query, end of queries and of keys."""
    for start in range(0, tokens, QUERIES):
        yield (max(0, start - window + 1) if window else 0), start, min(start + QUERIES, tokens)


def scores(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, first: int, start: int, window: int, scale: float
) -> torch.Tensor:
    """Scores [Hkv, G, q, k] float32 of the queries that begin at token `start` with the keys that begin at `first`.

    What a query does not see is minus infinity."""
    (queries, heads, head_dim), kv_heads = query.shape, key.size(1)
    grouped = query.float().view(queries, kv_heads, heads // kv_heads, head_dim) * scale
    found = torch.einsum("qhgd,khd->hgqk", grouped, key.float())
    q_at = torch.arange(start, start + queries, device=query.device)[:, None]
    k_at = torch.arange(first, first + key.size(0), device=query.device)
    visible = (k_at <= q_at) & (k_at >= q_at - positions[:, None])
    if window:
        visible = visible & (k_at > q_at - window)
    return found.masked_fill(~visible, float("-inf"))


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op's meaning in plain PyTorch, in float32."""
    tokens, heads, head_dim = query.shape
    kv_heads = key.size(1)
    sink = sinks.float().view(kv_heads, heads // kv_heads, 1)
    outs, log_totals = [], []
    for first, start, end in spans(tokens, window):
        found = scores(query[start:end], key[first:end], positions[start:end], first, start, window, scale)
        top = torch.maximum(found.amax(dim=-1), sink)
        weights = torch.exp(found - top.unsqueeze(-1))
        total = weights.sum(dim=-1) + torch.exp(sink - top)
        out = torch.einsum("hgqk,khd->qhgd", weights / total.unsqueeze(-1), value[first:end].float())
        outs.append(out.reshape(end - start, heads, head_dim).to(query.dtype))
        log_totals.append((top + torch.log(total)).permute(2, 0, 1).reshape(end - start, heads))
    return torch.cat(outs), torch.cat(log_totals)


def fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One sequence and several, padding, full and sliding, windows that no tile divides, GQA 1, 2 and 8."""
    shapes = {
        # label: (lengths of the sequences, kv heads, group, head_dim, window)
        "one token": ((1,), 1, 2, 32, 0),
        "one sequence": ((100,), 2, 2, 32, 0),
        "one sequence, window": ((150,), 1, 8, 64, 16),
        "window across tiles": ((300,), 2, 1, 32, 77),
        "packed": ((3, 70, 1, 90), 2, 2, 32, 0),
        "packed, window": ((130, 5, 64), 1, 4, 16, 32),
        "padding": ((40, 1, 1, 1, 1, 1, 1, 1), 2, 2, 32, 16),
    }
    for label, (lengths, kv_heads, group, dim, window) in shapes.items():
        random = torch.Generator().manual_seed(len(label))
        tokens = sum(lengths)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device, dtype)  # noqa: B023

        arguments = {
            "query": normal(tokens, kv_heads * group, dim),
            "key": normal(tokens, kv_heads, dim),
            "value": normal(tokens, kv_heads, dim),
            "sinks": 2 * normal(kv_heads * group),
            "positions": torch.cat([torch.arange(length) for length in lengths]).to(device),
            "window": window,
            "scale": dim**-0.5,
        }
        yield Case(label, arguments)


def packed_positions(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Positions [T] of one sequence, the longest that fits."""
    return torch.arange(like.numel(), device=draw.device)


OP = Op(
    name="packed_attention",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={"positions": packed_positions},
    as_kernel=True,
)
