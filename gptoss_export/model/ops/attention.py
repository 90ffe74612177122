"""gptoss::sink_attention: causal attention over a KV cache, with a learned sink in every softmax.

Each query head h has a logit `sinks[h]`, the sink, which takes part in the softmax and has no value
(gpt-oss model card, arXiv:2508.10925, section 2.3):

    out[q] = sum_k exp(s[q, k] - m) v[k] / (sum_k exp(s[q, k] - m) + exp(sinks[h] - m))

with s = scale * q.k over the keys that q sees: positions 0..p of its sequence. On sliding layers q sees only the last
`window` of them, p included.

Shapes
  query      [N, L, Hq, D]        N segments of L queries each, of one sequence each; decode has L = 1
  k_cache    [P, Hkv, G, D]       P pages of G positions; the keys of the queries are already written
  v_cache    [P, Hkv, G, D]
  pages      [S, X] int32         the pages of S slots (sequences): entry i holds positions G i to G (i + 1) - 1
  sinks      [Hq]
  slots      [N] int64            which slot the sequence of segment n lives in; segments may share one
  positions  [N, L] int64         position of each query, consecutive; -1 marks padding, whose result is zero
  window     int                  0: see everything
  scale      float
  returns    [N, L, Hq, D], dtype of query; softmax and sums are float32

Position p of a slot is in row p % G of page pages[slot, p // G] (model/kv_cache.py). Entries of positions that no query
sees are not followed to what they hold: they may name any page. Page 0 is scratch, and nothing reads it.

Rows that no query of a sequence sees do not change its result, whatever they hold: NaN and infinity included. So a
page that held NaN serves the next sequence. A visible key or value that is not finite gives NaN.

Limits: where one query of a call sees a value that is not finite, and another query of the call does not, the results
of both may be NaN. gptoss::kv_write keeps such values out of the cache: it marks their keys instead, which are masked
for each query alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import draw
from .op import Case, Op


def reference(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    sinks: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
) -> torch.Tensor:
    """The op's meaning in plain PyTorch; computes in float32 over all positions that a slot can hold, or over those
    that a window can reach."""
    sequences, length, query_heads, head_dim = query.shape
    kv_heads, size = k_cache.size(1), k_cache.size(2)
    group = query_heads // kv_heads
    held, first = pages[slots].long(), torch.zeros_like(slots)  # [N, X], and the position of their first row
    reach = (window + length - 1 + 2 * (size - 1)) // size  # pages that window + length - 1 positions can touch
    if window and reach < held.size(1):
        last = positions.amax(dim=1, keepdim=True)
        lowest = torch.where(positions >= 0, positions, last).amin(dim=1)
        start = ((lowest - window + 1).clamp(min=0) // size).clamp(max=held.size(1) - reach)
        held = held.gather(1, start[:, None] + torch.arange(reach, device=query.device))
        first = start * size
    rows = held.size(1) * size

    def of_sequences(cache: torch.Tensor) -> torch.Tensor:
        return cache[held].transpose(1, 2).reshape(sequences, kv_heads, rows, head_dim).float()

    keys = of_sequences(k_cache)
    q_at, k_at = positions[:, :, None], (first[:, None] + torch.arange(rows, device=query.device))[:, None, :]
    visible = k_at <= q_at
    if window:
        visible = visible & (k_at > q_at - window)
    # A weight of zero times NaN is NaN, so a row that no query sees is replaced before it is multiplied.
    values = torch.where(visible.any(dim=1)[:, None, :, None], of_sequences(v_cache), 0.0)
    grouped = query.float().view(sequences, length, kv_heads, group, head_dim) * scale
    scores = torch.einsum("nlhgd,nhrd->nhglr", grouped, keys)
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    sink = sinks.float().view(1, kv_heads, group, 1, 1).expand(sequences, -1, -1, length, -1)
    top = torch.maximum(scores.amax(dim=-1, keepdim=True), sink)
    weights = torch.exp(scores - top)
    total = weights.sum(dim=-1, keepdim=True) + torch.exp(sink - top)
    out = torch.einsum("nhglr,nhrd->nlhgd", weights / total, values)
    return out.reshape(sequences, length, query_heads, head_dim).to(query.dtype).contiguous()


def fake(query: torch.Tensor, *_: object) -> torch.Tensor:
    return query.new_empty(query.shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Decode and prefill, full and sliding, pages of several sizes, idle rows, GQA 1, 2 and 8."""
    shapes = {
        # label: (slots, kv heads, group, head_dim, page, pages of a slot, window, queries' first positions, L)
        "decode first token": (2, 2, 2, 32, 64, 1, 0, [0, 0], 1),
        "decode ragged": (4, 2, 8, 64, 32, 10, 0, [299, 0, -1, 128], 1),
        "decode, the last of a page": (2, 2, 2, 32, 8, 4, 0, [7, 8], 1),
        "decode window": (3, 2, 2, 32, 8, 26, 16, [15, 16, 200], 1),
        "decode all idle": (2, 1, 2, 32, 24, 1, 16, [-1, -1], 1),
        "prefill start": (2, 2, 2, 32, 64, 2, 0, [0], 40),
        "prefill middle": (1, 1, 8, 64, 16, 19, 0, [130], 70),
        "prefill window": (2, 2, 1, 32, 16, 12, 16, [90], 96),
        "prefill window across tiles": (1, 2, 4, 16, 64, 18, 128, [1000], 100),
        "shared chunk": (3, 2, 2, 32, 64, 2, 0, [16, 0, 32, 99], 16),
        "shared chunk, window": (3, 2, 8, 32, 16, 12, 16, [160, 5, 176, -1], 16),
    }
    for label, (slots, kv_heads, group, dim, page, count, window, starts, length) in shapes.items():
        random = torch.Generator().manual_seed(len(label))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device, dtype)  # noqa: B023

        first = torch.tensor(starts)[:, None]
        positions = torch.where(first >= 0, first + torch.arange(length), -1)
        if length > 1:
            positions[-1 if "shared" in label else slice(None), -5:] = -1  # a padded chunk
        arguments = {
            "query": normal(len(starts), length, kv_heads * group, dim),
            "k_cache": normal(slots * count + 1, kv_heads, page, dim),
            "v_cache": normal(slots * count + 1, kv_heads, page, dim),
            "pages": draw.table(slots, count, random).to(device),
            "sinks": 2 * normal(kv_heads * group),
            "slots": draw.places(slots, len(starts), "shared" in label, random).to(device),
            "positions": positions.to(device),
            "window": window,
            "scale": dim**-0.5,
        }
        yield Case(label, arguments)


OP = Op(
    name="sink_attention",
    reference=reference,
    fake=fake,
    cases=cases,
    realistic={"positions": draw.positions, "slots": draw.slots, "pages": draw.pages},
    as_kernel=True,
)
