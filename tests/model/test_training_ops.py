"""The ops of a training step: against transformers, plain loops and autograd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptoss_export.model.expert_weights import unpack
from gptoss_export.model.ops import OPS
from gptoss_export.verification.metric import TOLERANCES, deviation

CPU = torch.device("cpu")
CLOSE = TOLERANCES[torch.float32]


def cases(op: str) -> Any:
    found = list(OPS[op].cases(CPU, torch.float32))
    return pytest.mark.parametrize("arguments", [case.arguments for case in found], ids=[case.label for case in found])


@cases("packed_attention")
def test_packed_attention_is_transformers(arguments: dict[str, Any]) -> None:
    """Each sequence by itself through eager_attention_forward."""
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    out, log_total = OPS["packed_attention"].reference(**arguments)
    assert log_total.shape == out.shape[:2] and bool(torch.isfinite(log_total).all())
    positions, window = arguments["positions"], arguments["window"]
    starts = (positions == 0).nonzero().flatten().tolist()
    module = SimpleNamespace(
        num_key_value_groups=arguments["query"].size(1) // arguments["key"].size(1),
        sinks=arguments["sinks"],
        training=False,
    )
    for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
        at = torch.arange(end - start)
        seen = at[None] <= at[:, None]
        if window:
            seen &= at[None] > at[:, None] - window
        mask = torch.where(seen, 0.0, float("-inf"))[None, None]
        q, k, v = (arguments[name][start:end].transpose(0, 1)[None] for name in ("query", "key", "value"))
        expected, _ = eager_attention_forward(module, q, k, v, mask, scaling=arguments["scale"], dropout=0.0)
        assert deviation(out[start:end], expected[0]).within(CLOSE)


@cases("packed_attention_backward")
def test_gradients_of_packed_attention_are_those_of_autograd(arguments: dict[str, Any]) -> None:
    forward = {name: arguments[name] for name in OPS["packed_attention"].argument_names}
    wanted = ("query", "key", "value", "sinks")
    inputs = {name: forward[name].double().requires_grad_() for name in wanted}

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        """The whole softmax at once, the sink as one more column."""
        tokens, heads, _ = query.shape
        group = heads // key.size(1)
        scores = torch.einsum("qhd,khd->hqk", query * forward["scale"], key.repeat_interleave(group, dim=1))
        at = torch.arange(tokens)
        begin = at - forward["positions"]
        hidden = (at[None] > at[:, None]) | (at[None] < begin[:, None])
        if forward["window"]:
            hidden = hidden | (at[None] <= at[:, None] - forward["window"])
        scores = scores.masked_fill(hidden, float("-inf"))
        with_sink = torch.cat((scores, sinks[:, None, None].expand(-1, tokens, 1)), dim=-1)
        weights = with_sink.softmax(dim=-1)[..., :-1]
        return torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(group, dim=1))

    out = plain(**inputs)
    expected = torch.autograd.grad(out, list(inputs.values()), arguments["grad"].double())
    got = OPS["packed_attention_backward"].reference(**arguments)
    for name, have, want in zip(wanted, got, expected, strict=True):
        assert deviation(have, want.float()).within(CLOSE), name


@cases("grouped_linear")
def test_grouped_linear_is_a_loop_over_experts(arguments: dict[str, Any]) -> None:
    got = OPS["grouped_linear"].reference(**arguments)
    matrices = unpack(arguments["matrix_weight"], arguments["matrix_scales"], arguments["matrix_table"])
    expected, start = torch.zeros_like(got), 0
    for expert, (matrix, end) in enumerate(zip(matrices, arguments["ends"].tolist(), strict=True)):
        rows = arguments["x"][start:end]
        expected[start:end] = rows @ (matrix if arguments["transposed"] else matrix.T)
        if arguments["bias"] is not None:
            expected[start:end] += arguments["bias"][expert]
        if arguments["added"] is not None:
            expected[start:end] += arguments["added"][start:end]
        start = end
    assert deviation(got, expected).within(CLOSE)
    assert torch.equal(got[start:], torch.zeros_like(got[start:]))


@cases("grouped_outer")
def test_grouped_outer_is_a_loop_over_experts(arguments: dict[str, Any]) -> None:
    got, start = OPS["grouped_outer"].reference(**arguments), 0
    for sums, end in zip(got, arguments["ends"].tolist(), strict=True):
        rows = slice(start, end)
        assert deviation(sums, arguments["a"][rows].T @ arguments["b"][rows]).within(CLOSE)
        start = end


@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
def test_rows_without_an_expert_change_no_bit(fill: float) -> None:
    for name, tensors in ("grouped_linear", ("x", "added")), ("grouped_outer", ("a", "b")):
        for case in OPS[name].cases(CPU, torch.float32):
            end = int(case.arguments["ends"][-1])
            given = {name: case.arguments[name] for name in tensors}
            filled = {name: value.clone() for name, value in given.items() if value is not None}
            for tensor in filled.values():
                tensor[end:] = fill
            expected = OPS[name].reference(**case.arguments)
            assert torch.equal(OPS[name].reference(**case.arguments | filled), expected), case.label
