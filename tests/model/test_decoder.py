"""RoPE, RMSNorm and the router against transformers, ties included."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from gptoss_export.checkpoint.layouts.hugging_face import plain_config_json
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.model.config import Yarn
from gptoss_export.model.decoder import RotaryEmbedding, yarn_inv_freq
from gptoss_export.model.ops import OPS
from gptoss_export.model.ops.experts_sublayer import route
from gptoss_export.model.ops.norm import rms_norm


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"truncate": True},
        {"factor": 4.0},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"attention_factor": 1.75},
        {"beta_fast": 4096.0},  # the ramp would start below dimension 0
        {"beta_slow": 1e-6},  # and end behind the last one
        {"theta": 2.0, "truncate": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [32, 64])
def test_yarn_is_transformers(change: dict[str, Any], head_dim: int) -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    rope = dataclasses.replace(PRESETS["20b"].rope, **change)
    config = dataclasses.replace(PRESETS["20b"], head_dim=head_dim, rope=rope)
    theirs = GptOssRotaryEmbedding(GptOssConfig(**plain_config_json(config)))
    ours = RotaryEmbedding(config)
    ours.inv_freq.data.copy_(yarn_inv_freq(rope, head_dim))
    torch.testing.assert_close(ours.inv_freq.data, theirs.inv_freq, rtol=1e-6, atol=0)
    positions = torch.tensor([0, 1, 4095, 4096, 131071])
    for mine, other in zip(ours(positions), theirs(torch.zeros(1), positions[None]), strict=True):
        torch.testing.assert_close(mine, other[0])


def test_yarn_by_hand() -> None:
    """theta 16 and 8 dimensions: frequencies 1, 1/2, 1/4, 1/8. Within 32 pi positions the first turns 16 times, the
    others 8, 4 and 2 times, so that the ramp from 8 turns down to 4 turns keeps two of them and slows two."""
    yarn = Yarn(16.0, 4.0, 1, beta_fast=8.0, beta_slow=4.0)
    yarn = dataclasses.replace(yarn, original_max_position_embeddings=32 * math.pi)  # type: ignore[arg-type]
    expected = torch.tensor([1.0, 0.5, 0.25 / 4, 0.125 / 4])
    torch.testing.assert_close(yarn_inv_freq(yarn, 8), expected, rtol=1e-5, atol=0)


def test_concentration() -> None:
    rope = PRESETS["20b"].rope
    assert rope.concentration == pytest.approx(0.1 * math.log(32) + 1)
    assert dataclasses.replace(rope, attention_factor=0.5).concentration == 0.5
    assert dataclasses.replace(rope, factor=1.0).concentration == 1.0


def test_router_is_transformers() -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    rows, bias, x = torch.randn(16, 64), torch.randn(16), torch.randn(50, 64)
    theirs = GptOssTopKRouter(GptOssConfig(hidden_size=64, num_local_experts=16, num_experts_per_tok=4))
    theirs.load_state_dict({"weight": rows, "bias": bias})
    _, scores, indices = theirs(x)
    ours_scores, ours_indices = route(x, rows, bias, 4)
    assert torch.equal(ours_indices, indices)
    torch.testing.assert_close(ours_scores, scores)


def test_router_ties_go_to_the_lower_index() -> None:
    rows = torch.zeros(6, 32)
    rows[[1, 3, 4], 0] = 1.0  # three equal winners for two places
    weights, indices = route(torch.ones(3, 32), rows, torch.zeros(6), 2)
    assert indices.tolist() == [[1, 3]] * 3
    assert torch.equal(weights, torch.full((3, 2), 0.5))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 0.0])
def test_norm_is_transformers(scale: float) -> None:
    """At an rms of 1e-3 the usual eps is ten times the mean square."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

    theirs = GptOssRMSNorm(64, eps=1e-5)
    theirs.weight.data.normal_()
    x = scale * torch.randn(5, 64)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, theirs.weight, 1e-5), theirs(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("op", ["attention_sublayer", "experts_sublayer", "unembed"])
def test_ops_norm_small_inputs_with_eps(op: str) -> None:
    """A row x whose mean square is m has the norm x / sqrt(m + eps): the same as with no eps and with a norm weight
    that is sqrt(m / (m + eps)) times as large."""
    eps = 1e-5
    for _, arguments in OPS[op].cases(torch.device("cpu"), torch.float32):
        if arguments["x"].size(0) != 1 or not (arguments.get("positions", torch.zeros(1)) >= 0).all():
            continue  # other rows have other mean squares, and an idle row's result is that of no key at all
        for x in (arguments["x"] * 1e-3, torch.zeros_like(arguments["x"])):
            mean_square = x.double().square().mean().item()
            smaller = arguments["norm_weight"] * math.sqrt(mean_square / (mean_square + eps))
            with_eps = _result(op, arguments | {"x": x, "eps": eps})
            without = _result(op, arguments | {"x": x, "eps": 1e-30, "norm_weight": smaller})
            dropped = _result(op, arguments | {"x": x, "eps": 1e-30})
            assert bool(torch.isfinite(with_eps).all())
            torch.testing.assert_close(with_eps, without, rtol=1e-4, atol=1e-5)
            assert not x.any() or not torch.allclose(with_eps, dropped, rtol=1e-2, atol=1e-3)


def _result(op: str, arguments: dict[str, Any]) -> torch.Tensor:
    """What the reference returns first; caches are written in a copy."""
    copies = {name: arguments[name].clone() for name in OPS[op].mutates}
    returned = OPS[op].reference(**(arguments | copies))
    first = returned[0] if isinstance(returned, tuple) else returned
    assert isinstance(first, torch.Tensor)
    return first
