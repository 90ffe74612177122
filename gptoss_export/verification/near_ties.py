"""Near ties: tokens that two correct implementations may route to different experts.

A router sends a token to the K experts with the largest router logits. The margin of a token is the logit of the last
expert that was chosen minus the logit of the first one that was not, the smallest over all layers. Rounding changes
the logits a little. Where the margin is smaller than that change, the token may go to another expert, in the artifact
or in the oracle, and its logits then differ by much more than by rounding. Such a token has a near tie.

How much rounding changes a margin is measured. The oracle runs in float32 and in the artifact's dtype. Over the
tokens that went to the same experts both times, the 99th percentile of the change is the margin below which a token
has a near tie. Tokens that went to different experts are left out, since their two margins are between different
experts.

A float32 artifact and the oracle differ by the order of their sums alone. FLOAT32_MARGIN is more than that changes a
router logit.

How far such a token's logits move is measured too: the oracle runs once more, and every near tie is decided the
other way (`other_side`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

QUANTILE = 0.99
MINIMUM = 2.0**-5  # the distance of two bfloat16 numbers between 4 and 8, where router logits lie
FLOAT32_MARGIN = 1e-4
_MULTIPLIER = 6364136223846793005  # odd; spreads the digests of layers over 64 bits


@dataclass(frozen=True)
class Routing:
    """How the routers chose for each of n tokens, over all layers.

    margin  [n] float32, in logits; infinite where every expert is chosen
    chosen  [n] int64, a digest of the chosen experts: equal for tokens with the same experts in every layer
    """

    margin: torch.Tensor
    chosen: torch.Tensor

    @classmethod
    def of_layer(cls, logits: torch.Tensor, chosen: torch.Tensor) -> Routing:
        """The routing of one layer: router logits [n, E], indices of the chosen experts [n, K] in any order."""
        values = torch.randint(-(2**62), 2**62, (logits.size(-1),), generator=torch.Generator().manual_seed(0))
        return cls(_margin(logits, chosen.size(-1)), values[chosen.cpu()].sum(dim=-1))

    @classmethod
    def of_layers(cls, layers: Sequence[Routing]) -> Routing:
        """The routing over all layers, given in order."""
        chosen = torch.zeros_like(layers[0].chosen)
        for layer in layers:
            chosen = chosen * _MULTIPLIER + layer.chosen  # int64 wraps around
        return cls(torch.stack([layer.margin for layer in layers]).amin(dim=0), chosen)

    @classmethod
    def join(cls, pieces: Sequence[Routing]) -> Routing:
        """The routing of consecutive pieces of a sequence."""
        return cls(torch.cat([piece.margin for piece in pieces]), torch.cat([piece.chosen for piece in pieces]))


def near_tie_margin(exact: Routing, rounded: Routing) -> float:
    """The margin below which a token has a near tie, from the oracle's routing in float32 and in the artifact's dtype.

    0 where every expert is chosen, infinite where rounding sent every token to other experts.
    """
    finite = exact.margin.isfinite()
    if not finite.any():
        return 0.0
    same = finite & (exact.chosen == rounded.chosen)
    change = (exact.margin - rounded.margin)[same].abs()
    return max(MINIMUM, change.quantile(QUANTILE).item()) if len(change) else float("inf")


def margin_quantiles(routing: Routing) -> tuple[float, ...]:
    """The 0, 1, ... 100 % quantiles of the margins, in logits; empty where every expert is chosen."""
    finite = routing.margin[routing.margin.isfinite()].double()
    if not len(finite):
        return ()
    return tuple(finite.quantile(torch.linspace(0, 1, 101, dtype=torch.float64)).tolist())


def other_side(logits: torch.Tensor, chosen: torch.Tensor, near_tie: float) -> torch.Tensor:
    """The chosen experts [n, K] with every near tie decided the other way, from router logits [n, E].

    Where the margin is below `near_tie`, the best expert that was not chosen takes the place of the last chosen one.
    """
    if logits.size(-1) == chosen.size(-1):
        return chosen
    values = logits.float()
    last, place = values.gather(-1, chosen).min(dim=-1, keepdim=True)
    following, expert = values.scatter(-1, chosen, -torch.inf).max(dim=-1, keepdim=True)
    return torch.where(last - following < near_tie, chosen.scatter(-1, place, expert), chosen)


def _margin(logits: torch.Tensor, choices: int) -> torch.Tensor:
    """The margin [n] of router logits [n, E], on the CPU."""
    if logits.size(-1) == choices:
        return torch.full((logits.size(0),), torch.inf)
    values = logits.float().topk(choices + 1, dim=-1).values
    return (values[:, choices - 1] - values[:, choices]).cpu()
