"""How ranks divide a model: together they have each number once."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.model.config import ModelConfig
from gptoss_export.model.decoder import GptOss
from gptoss_export.model.expert_formats import FORMATS
from gptoss_export.model.parameters import PLACES, parameters
from gptoss_export.model.ranks import RankConfig, Sharing, division_problems, program_configs, rank_configs

TWENTY_B = PRESETS["20b"]


@st.composite
def shared_models(draw: st.DrawFn) -> tuple[ModelConfig, Sharing]:
    """Models and how many ranks share them."""
    ranks = draw(st.sampled_from((2, 4, 8)))
    kv_heads = ranks * draw(st.integers(1, 2))
    form = draw(st.sampled_from(list(FORMATS.values())))
    config = dataclasses.replace(
        PRESETS["tiny"],
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        hidden_size=2 * form.group,
        intermediate_size=form.group * draw(st.integers(ranks, 3 * ranks)),
        experts_format=form.name,
        vocab_size=draw(st.integers(ranks * ranks, 600)),
        num_local_experts=draw(st.integers(ranks * ranks, ranks * ranks + 3)),
    )
    return config, Sharing(ranks, draw(st.booleans()))


@settings(deadline=None)
@given(shared_models())
def test_each_number_belongs_to_one_rank(shared: tuple[ModelConfig, Sharing]) -> None:
    config, sharing = shared
    assert division_problems(config, sharing) == []
    whole = {item.name: item.shape for item in parameters(config, "float32")}
    counts = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in whole.items()}
    for part in rank_configs(config, sharing):
        assert isinstance(part, RankConfig)
        for item in parameters(part, "float32"):
            if item.name == PLACES:
                continue
            found = part.slices(item.name, whole[item.name])
            sizes = [(s.stop - s.start) * math.prod(whole[item.name]) // whole[item.name][s.dim] for s in found]
            assert sum(sizes) in (math.prod(item.shape), 0), item.name
            for piece in found:
                counts[item.name].narrow(piece.dim, piece.start, piece.stop - piece.start).add_(1)
    for name, count in counts.items():
        assert count.unique().tolist() in ([1], [sharing.ranks]), name  # divided, or whole on each rank


@settings(deadline=None)
@given(shared_models())
def test_the_decoder_of_a_rank_has_its_parameters(shared: tuple[ModelConfig, Sharing]) -> None:
    for part in program_configs(*shared):
        with torch.device("meta"):
            model = GptOss(part, torch.float32)
        found = {name: tuple(value.shape) for name, value in model.named_parameters()}
        assert found == {item.name: item.shape for item in parameters(part, "float32")}


@pytest.mark.parametrize(("ranks", "columns"), [(2, [45, 45]), (4, [23, 23, 22, 22]), (8, [12, 12, *[11] * 6])])
def test_the_groups_of_a_real_model(ranks: int, columns: list[int]) -> None:
    parts = rank_configs(TWENTY_B, Sharing(ranks))
    assert [part.intermediate_size // 32 for part in parts] == columns
    assert len(program_configs(TWENTY_B, Sharing(ranks))) == len(set(columns))
    assert sum(part.unembedded_tokens for part in parts) == TWENTY_B.vocab_size
    assert {part.vocab_size for part in parts} == {TWENTY_B.vocab_size}


def test_biases_of_sums_count_once() -> None:
    for part in rank_configs(TWENTY_B, Sharing(2)):
        assert isinstance(part, RankConfig)
        for name in ("self_attn.o_proj.bias", "mlp.experts.down_proj_bias"):
            assert bool(part.slices(f"model.layers.3.{name}", (32, 2880))) == (part.rank == 0)


def test_gate_and_up_stay_together() -> None:
    for part in rank_configs(TWENTY_B, Sharing(4)):
        assert isinstance(part, RankConfig)
        (rows,) = part.slices("model.layers.0.mlp.experts.gate_up_proj_blocks", (32, 5760, 90, 16))
        (columns,) = part.slices("model.layers.0.mlp.experts.down_proj_blocks", (32, 2880, 90, 16))
        assert (rows.start, rows.stop) == (64 * columns.start, 64 * columns.stop)


@pytest.mark.parametrize(
    ("changed", "sharing", "expected"),
    [
        ({"intermediate_size": 128}, Sharing(4), "num_key_value_heads: found 2, expected a multiple of 4"),
        ({"num_key_value_heads": 4}, Sharing(4), "intermediate_size: found 64, expected 128 or more"),
        (
            {"num_key_value_heads": 4, "num_local_experts": 5},
            Sharing(4, True),
            "num_local_experts: found 5, which",
        ),
        (
            {"num_key_value_heads": 8, "intermediate_size": 256, "vocab_size": 9},
            Sharing(8),
            "vocab_size: found 9",
        ),
    ],
)
def test_what_cannot_be_divided(changed: dict[str, int], sharing: Sharing, expected: str) -> None:
    (problem,) = division_problems(dataclasses.replace(PRESETS["tiny"], **changed), sharing)
    assert problem.startswith(expected)


def test_one_rank_has_the_whole_model() -> None:
    assert rank_configs(TWENTY_B, Sharing(1)) == program_configs(TWENTY_B, Sharing(1)) == (TWENTY_B,)
    assert division_problems(TWENTY_B, Sharing(1)) == []
