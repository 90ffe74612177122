"""What the ranks that share a model make of their logits together: sums over the ranks. Every rank has the same bits
afterwards."""

from __future__ import annotations

import torch

from .places import WHICH, Box


def best_of_ranks(
    logits: torch.Tensor, top: torch.Tensor, log_total: torch.Tensor, places: torch.Tensor, ranks: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """top, top_logprob and log_total of gptoss::unembed for all tokens, from the results for each rank's own: logits
    [R, Vr] float32, top [R] int64, log_total [R] float32.

    places  model/places.py
    tokens  of the first rank

    Three numbers of each row travel, and no logits. Of equal logits the lowest token wins: that of the first rank.
    """
    best = logits.gather(-1, top[:, None]).squeeze(-1)
    token = top.float()  # exact: a rank has fewer than 2^24 tokens
    of_ranks = _of_each_rank(torch.stack((best, log_total, token)), places, ranks)  # [ranks, 3, R]
    each_best, each_total, each_token = of_ranks.unbind(1)
    winner = each_best.argmax(dim=0, keepdim=True)
    found = each_token.gather(0, winner).long() + winner * tokens
    total = each_total.logsumexp(dim=0)
    return found.squeeze(0), each_best.gather(0, winner).squeeze(0) - total, total


def all_logits(logits: torch.Tensor, places: torch.Tensor, ranks: int, tokens: int) -> torch.Tensor:
    """The logits [R, `tokens`] of all tokens, from a rank's own [R, Vr]. Each rank but the last has the same number of
    tokens, and the last one no more. places: model/places.py."""
    each = -(-tokens // ranks)
    filled = torch.nn.functional.pad(logits, (0, each - logits.size(1)))
    return _of_each_rank(filled, places, ranks).transpose(0, 1).flatten(1)[:, :tokens].contiguous()


def _of_each_rank(x: torch.Tensor, places: torch.Tensor, ranks: int) -> torch.Tensor:
    """x of each rank [ranks, *shape of x]: a sum of which all terms but one are zero."""
    is_own = (torch.arange(ranks, device=x.device) == places[WHICH]).view(-1, *(1 for _ in x.shape))
    part = torch.where(is_own, x, 0.0)
    return torch.ops.gptoss.sum_ranks(x=part, residual=None, places=places, ranks=ranks, box=Box.IN_TURN)
