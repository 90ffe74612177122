"""Which tokens have a near tie: the routers' margins, what rounding changes, and the routing of the oracles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.errors import UsageError
from gptoss_export.verification.near_ties import FLOAT32_MARGIN, MINIMUM, Routing, near_tie_margin, other_side
from gptoss_export.verification.oracles import OracleOutput, check_oracle, open_oracle


def routing(margin: torch.Tensor, chosen: torch.Tensor | None = None) -> Routing:
    return Routing(margin, torch.zeros(len(margin), dtype=torch.int64) if chosen is None else chosen)


def test_near_ties_are_what_rounding_can_change() -> None:
    exact = torch.linspace(0, 1, 200)
    assert near_tie_margin(routing(exact), routing(exact)) == MINIMUM == 2**-5
    assert near_tie_margin(routing(exact), routing(exact + 0.1)) == pytest.approx(0.1)
    one_moved = exact.clone()
    one_moved[7] = 5.0
    assert near_tie_margin(routing(exact), routing(one_moved)) == MINIMUM
    infinite = routing(torch.full((3,), torch.inf))
    assert near_tie_margin(infinite, infinite) == 0.0  # all experts are chosen


def test_tokens_that_went_to_other_experts_say_nothing_of_rounding() -> None:
    """Their margin is that of another pair of experts. Where all tokens went to others, all have a near tie."""
    exact, moved = torch.linspace(0, 1, 200), torch.linspace(0, 1, 200)
    chosen = torch.zeros(200, dtype=torch.int64)
    moved[:50] += 0.7
    assert near_tie_margin(routing(exact), routing(moved)) == pytest.approx(0.7)
    chosen[:50] = 1
    assert near_tie_margin(routing(exact), routing(moved, chosen)) == MINIMUM
    assert near_tie_margin(routing(exact), routing(moved, torch.ones_like(chosen))) == float("inf")


def test_routing_distinguishes_experts_by_layer() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    layer = Routing.of_layer(logits, torch.tensor([[0, 1], [1, 0], [0, 2], [2, 3]]))
    assert layer.margin.tolist() == [1.0] * 4
    same, other = layer.chosen[0] == layer.chosen[1], layer.chosen[[0, 2, 3]]
    assert same and len(set(other.tolist())) == 3
    swapped = Routing.of_layer(2 * logits, torch.tensor([[0, 2], [1, 0], [0, 1], [2, 3]]))
    one, two = Routing.of_layers([layer, swapped]), Routing.of_layers([swapped, layer])
    assert one.margin.tolist() == [1.0] * 4  # the smallest
    assert (one.chosen == two.chosen).tolist() == [False, True, False, True]  # the same experts, in other layers
    assert Routing.join([one, two]).chosen.tolist() == [*one.chosen.tolist(), *two.chosen.tolist()]


def test_the_other_side_of_a_near_tie() -> None:
    """The best expert that was not chosen takes the place of the last chosen one, wherever that stands."""
    logits = torch.tensor([[3.0, 2.0, 1.9, 0.0], [3.0, 2.0, 1.0, 0.0], [0.0, 2.0, 2.0, 1.95]])
    chosen = torch.tensor([[1, 0], [0, 1], [1, 2]])
    changed = other_side(logits, chosen, 0.2)
    assert changed[0].tolist() == [2, 0] and changed[1].tolist() == [0, 1]
    assert set(changed[2].tolist()) in ({1, 3}, {2, 3})
    assert torch.equal(other_side(logits, chosen, 0.01), chosen)
    assert torch.equal(other_side(logits[:, :2], torch.tensor([[0, 1]] * 3), 9.0), torch.tensor([[0, 1]] * 3))
    assert FLOAT32_MARGIN == 1e-4


def test_oracles_decide_near_ties_the_other_way(checkpoints: dict[str, Path]) -> None:
    """Both oracles in the same way; tokens without a near tie, before the first one with a near tie, are the same."""
    tokens, rows = list(range(40)), list(range(40))
    outputs = []
    for name in ("transformers", "reference"):
        oracle = open_oracle(name, open_checkpoint(checkpoints["hf"]), torch.float32, torch.device("cpu"))
        plain, other = oracle.run(tokens, rows), oracle.run(tokens, rows, 0.05)
        again = oracle.run(tokens, rows)
        assert all(torch.equal(again.logits[row], plain.logits[row]) for row in rows)
        first = int((plain.routing.margin < 0.05).nonzero()[0])
        assert 0 < first < 39
        for row in range(first):
            torch.testing.assert_close(other.logits[row], plain.logits[row], atol=1e-5, rtol=1e-5)
        assert (other.logits[first] - plain.logits[first]).abs().max() > 1e-3
        assert other.routing.chosen[first] != plain.routing.chosen[first]
        outputs.append(other)
    for row in rows:
        torch.testing.assert_close(outputs[0].logits[row], outputs[1].logits[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["transformers", "reference"])
def test_oracles_report_their_routing(checkpoints: dict[str, Path], name: str) -> None:
    tokens = list(range(140))

    def run(dtype: torch.dtype) -> OracleOutput:
        oracle = open_oracle(name, open_checkpoint(checkpoints["hf"]), dtype, torch.device("cpu"))
        first, second = oracle.run(tokens, [0]), oracle.run(tokens, [139, 0])
        assert torch.equal(second.routing.chosen, first.routing.chosen)  # of the last run alone
        assert list(second.logits) == [139, 0]
        torch.testing.assert_close(second.logits[0], first.logits[0], atol=0.05, rtol=0.05)
        return second

    exact, rounded = run(torch.float32).routing, run(torch.bfloat16).routing
    assert exact.margin.shape == exact.chosen.shape == (140,) and exact.chosen.dtype == torch.int64
    same = exact.chosen == rounded.chosen
    assert same.any() and not same.all()  # rounding changes the experts of some
    assert exact.margin[~same].mean() < exact.margin[same].mean()


@pytest.mark.parametrize("layout", ["hf", "original", "hf-bf16"])
def test_oracles_agree_on_every_layout(checkpoints: dict[str, Path], layout: str) -> None:
    tokens, rows = list(range(3, 150)), [0, 31, 32, 127, 128, 146]
    first, second = (
        open_oracle(name, open_checkpoint(checkpoints[layout]), torch.float32, torch.device("cpu")).run(tokens, rows)
        for name in ("transformers", "reference")
    )
    for row in rows:
        torch.testing.assert_close(first.logits[row], second.logits[row], atol=1e-4, rtol=1e-4)
    assert torch.equal(
        first.routing.chosen == first.routing.chosen[0], second.routing.chosen == second.routing.chosen[0]
    )


def test_an_unknown_oracle_is_refused() -> None:
    with pytest.raises(UsageError, match="--oracle delphi: expected transformers or reference"):
        check_oracle("delphi")
