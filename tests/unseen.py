"""Fills what a call of an op must not see with NaN or infinity, and compares its results with those of zeros there.

What is filled: cache rows that no query sees, all pages of other slots, the scratch page, the inputs of padding, and
the inputs of the last token. The tokens before the last one do not see it: they are earlier in its chunk, or in other
sequences. Results of filled tokens are left out, unless the op promises zeros for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gptoss_export.model.ops import OPS

FILLS = {"nan": float("nan"), "inf": float("inf"), "negative inf": float("-inf")}
# The inputs of each op that have a row for each token. The op that is left out has whole numbers alone.
TOKEN_INPUTS = {
    "sink_attention": ("query",),
    "attention_sublayer": ("x", "cos", "sin"),
    "kv_write": ("key", "value"),
    "adapter_delta": ("x",),
    "experts": ("x", "routing_weights"),
    "adapted_experts": ("x", "routing_weights"),
    "experts_sublayer": ("x",),
    "unembed": ("x",),
}
ZERO_FOR_PADDING = "sink_attention", "experts", "adapted_experts"


class Unseen:
    """What a call of an op must not see.

    active  [T] bool: tokens that are not padding
    last    [T] bool: the last active token, if there are several
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name, self.arguments = name, arguments
        if "positions" in arguments:
            self.active = arguments["positions"].flatten() >= 0
        elif "expert_indices" in arguments:
            self.active = (arguments["expert_indices"] >= 0).any(dim=1)
        else:
            self.active = torch.ones_like(arguments["x"][:, 0], dtype=torch.bool)
        self.last = torch.zeros_like(self.active)
        if int(self.active.sum()) > 1:
            self.last[self.active.nonzero()[-1]] = True

    @property
    def can_fail(self) -> bool:
        """Whether something is filled and some result counts."""
        hidden = ~self.active | self.last
        return bool(self._counted_tokens().any()) and ("k_cache" in self.arguments or bool(hidden.any()))

    def same_bits(self, call: Callable[..., Any], fills: Sequence[float]) -> list[bool]:
        """For each fill, whether the results that count are finite and have the same bits as with zeros."""
        wanted = self._results(call, 0.0)
        return [
            all(
                bool(torch.isfinite(got.float()).all())
                and torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))
                for got, want in zip(self._results(call, fill), wanted, strict=True)
            )
            for fill in fills
        ]

    def _counted_tokens(self) -> torch.Tensor:
        return ~self.last if self.name in ZERO_FOR_PADDING else self.active & ~self.last

    def _rows(self, tokens: torch.Tensor, window: int) -> torch.Tensor:
        """[P, G] bool: cache rows of the last `window` positions of some tokens, of all positions if it is 0."""
        positions, slots, cache = (self.arguments[name] for name in ("positions", "slots", "k_cache"))
        pages, size = self.arguments["pages"].long(), cache.size(2)
        found = torch.zeros(cache.size(0), size, dtype=torch.bool, device=cache.device)
        for slot, at, chosen in zip(slots.tolist(), positions, tokens.view(positions.shape), strict=True):
            for position in at[chosen].tolist():
                first = max(0, position + 1 - window) if window else 0
                at = torch.arange(first, position + 1, device=cache.device)
                found[pages[slot, at // size], at % size] = True
        return found

    def _filled(self, fill: float) -> dict[str, Any]:
        """A copy of the arguments."""
        given = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in
                 self.arguments.items()}  # fmt: skip
        hidden = ~self.active | self.last
        for key in TOKEN_INPUTS[self.name]:
            given[key][hidden.view(given["positions"].shape) if key == "query" else hidden] = fill
        if "routing_weights" in given:
            given["routing_weights"][given["expert_indices"] < 0] = fill
        if "k_cache" in given:
            # The last token alone sees its own row. There the key is filled and the value is not: see kv_write.
            window = given.get("window", 1)
            for key, tokens in ("k_cache", self.active & ~self.last), ("v_cache", self.active):
                given[key].transpose(1, 2)[~self._rows(tokens, window)] = fill
        return given

    def _results(self, call: Callable[..., Any], fill: float) -> list[torch.Tensor]:
        """The results that count, of a call with `fill`."""
        op, given, counted = OPS[self.name], self._filled(fill), self._counted_tokens()
        results = op.results(call(**given), given)
        returned = results[: len(results) - len(op.mutates)]
        found = [result.reshape(len(counted), -1)[counted] for result in returned]
        if op.mutates:
            written = self._rows(self.active & ~self.last, 1)[1:]
            found += [cache.transpose(1, 2)[written] for cache in results[len(returned) :]]
        return found


def marks_keys(arguments: dict[str, Any], call: Callable[..., Any]) -> bool:
    """Whether a call of gptoss::kv_write whose values have three elements that are not finite writes 0 in their places,
    NaN in those of their keys, and everything else as it is given."""
    written = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    marked = [(0, 1, 7), (1, 0, 0), (1, 1, 33)]  # token, head, element
    for (token, head, element), fill in zip(marked, FILLS.values(), strict=True):
        written["value"][token, head, element] = fill
    call(**written)
    positions, slots, size = arguments["positions"], arguments["slots"], arguments["k_cache"].size(2)
    slot_of, at = slots[:, None].expand_as(positions).flatten(), positions.flatten()
    page, row = arguments["pages"][slot_of, at // size], at % size
    for cache, source, mark in ("k_cache", "key", float("nan")), ("v_cache", "value", 0.0):
        expected = arguments[source].clone()
        for place in marked:
            expected[place] = mark
        if not torch.equal(written[cache][page, :, row].nan_to_num(nan=9.0), expected.nan_to_num(nan=9.0)):
            return False
    return True
