"""Parts of the ops that are easily computed by hand: SwiGLU's limits, padding that goes to no expert, logits."""

from __future__ import annotations

import math

import pytest
import torch

from gptoss_export.model.ops import OPS
from gptoss_export.model.ops.experts import swiglu


@pytest.mark.parametrize(
    ("gate", "up", "expected"),
    [
        (1.0, 0.5, 1.5 * 1.0 / (1 + math.exp(-1.702))),
        (9.0, 0.0, 7.0 / (1 + math.exp(-1.702 * 7))),  # gate has the upper limit
        (-9.0, 0.0, -9.0 / (1 + math.exp(1.702 * 9))),  # and no lower one
        (1.0, 20.0, 8.0 / (1 + math.exp(-1.702))),  # up has both
        (1.0, -20.0, -6.0 / (1 + math.exp(-1.702))),
    ],
)
def test_swiglu(gate: float, up: float, expected: float) -> None:
    found = swiglu(torch.tensor([gate, up, 0.0, 0.0]), alpha=1.702, limit=7.0)
    assert found.tolist() == pytest.approx([expected, 0.0], rel=1e-5)


def test_padding_goes_to_no_expert() -> None:
    """Its result is its input: the residual stream without an expert."""
    for label, arguments in OPS["experts_sublayer"].cases(torch.device("cpu"), torch.float32):
        if label not in ("two tokens, one idle", "chunk"):  # both ways in which the reference computes experts
            continue
        x = arguments["x"]
        positions = torch.full_like(arguments["positions"], -1)
        assert torch.equal(OPS["experts_sublayer"].reference(**arguments | {"positions": positions}), x)
        moved = OPS["experts_sublayer"].reference(**arguments | {"positions": torch.arange(len(x))})
        assert (moved != x).any(dim=-1).all()


def test_unembedding() -> None:
    """A norm of ones and rows of the identity: the logits are x over its root mean square."""
    x = torch.tensor([[3.0, 1.0, 1.0, 3.0]])
    found = OPS["unembed"].reference(x, norm_weight=torch.ones(4), weight=torch.eye(4), eps=0.0)
    logits, top, top_logprob, log_total = found  # type: ignore[misc]
    scaled = [value / math.sqrt(5) for value in (3, 1, 1, 3)]
    total = math.log(sum(map(math.exp, scaled)))
    assert logits[0].tolist() == pytest.approx(scaled)
    assert top.tolist() == [0]  # of equal logits the lowest
    assert log_total.item() == pytest.approx(total)
    assert top_logprob.item() == pytest.approx(scaled[0] - total)
