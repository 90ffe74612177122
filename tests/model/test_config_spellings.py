"""Two spellings of one setting agree, and every number can be believed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from gptoss_export.checkpoint import LAYOUTS
from gptoss_export.checkpoint.layouts.hugging_face import plain_config_json
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import CheckpointError
from gptoss_export.model.config import BELIEVED, ModelConfig, Yarn, parse_config, violations

CONFIG = PRESETS["20b"]
HUGGING_FACE = plain_config_json(CONFIG)
ROPE = HUGGING_FACE["rope_scaling"]
ORIGINAL = LAYOUTS["original"].config_json(CONFIG)


def message(raw: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse_config(raw, "config.json")
    return str(caught.value)


# Keys that a file can have besides its own, with the value that agrees and one that does not.
SPELLINGS = [
    ({"num_experts": 32}, {"num_experts": 16}, "num_local_experts: found 32, but num_experts: found 16"),
    (
        {"experts_per_token": 4},
        {"experts_per_token": 2},
        "num_experts_per_tok: found 4, but experts_per_token: found 2",
    ),
    (
        {"initial_context_length": 4096},
        {"initial_context_length": 2048},
        "initial_context_length: found 2048, but rope_scaling.original_max_position_embeddings: found 4096",
    ),
    ({"rope_ntk_beta": 32}, {"rope_ntk_beta": 16}, "rope_ntk_beta: found 16, but rope_scaling.beta_fast: found 32.0"),
    ({"rope_ntk_alpha": 1}, {"rope_ntk_alpha": 2}, "rope_ntk_alpha: found 2, but rope_scaling.beta_slow: found 1.0"),
    (
        {"rope_scaling": ROPE | {"rope_theta": 150000}},
        {"rope_scaling": ROPE | {"rope_theta": 10000}},
        "rope_theta: found 150000.0, but rope_scaling.rope_theta: found 10000",
    ),
    (
        {"rope_scaling": ROPE | {"type": "yarn"}},
        {"rope_scaling": ROPE | {"type": "linear"}},
        "rope_scaling.rope_type: found 'yarn', but rope_scaling.type: found 'linear'",
    ),
    (
        {"rope_parameters": ROPE | {"rope_theta": 150000.0}},
        {"rope_parameters": ROPE | {"factor": 64.0}},
        "rope_parameters.factor: found 64.0, but rope_scaling.factor: found 32.0",
    ),
    (
        {"rope_parameters": {key: value for key, value in ROPE.items() if not key.startswith("beta")}},
        {"rope_parameters": ROPE | {"truncate": True}},
        "rope_parameters.truncate: found True, but rope_scaling.truncate: found False",
    ),
    (
        {"rope_parameters": ROPE | {"attention_factor": None}},
        {"rope_parameters": ROPE | {"attention_factor": 1.5}},
        "rope_parameters.attention_factor: found 1.5, but rope_scaling.attention_factor: found None",
    ),
    ({"num_experts": None}, {"num_experts": 31}, "num_local_experts: found 32, but num_experts: found 31"),
]


@pytest.mark.parametrize(
    ("agrees", "differs", "expected"), SPELLINGS, ids=[text.split(":")[0] for *_, text in SPELLINGS]
)
def test_spellings_of_one_setting(agrees: dict[str, Any], differs: dict[str, Any], expected: str) -> None:
    assert parse_config(HUGGING_FACE | agrees, "config.json") == CONFIG
    assert expected in message(HUGGING_FACE | differs)


@pytest.mark.parametrize(
    "change",
    [
        {"num_local_experts": 16},
        {"num_experts_per_tok": 2},
        {"rope_scaling": ROPE | {"factor": 64.0}},
        {"rope_parameters": {"beta_fast": 16.0}},
        {"rope_parameters": {"rope_theta": 1e4}},
        {"layer_types": ["full_attention"] * 24},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_the_original_spelling_with_keys_of_hugging_face(change: dict[str, Any]) -> None:
    rope = {key: value for key, value in ROPE.items() if key != "truncate"}
    agreeing = {"num_local_experts": 32, "num_experts_per_tok": 4, "rope_scaling": rope, "hidden_act": "silu"}
    read = parse_config(ORIGINAL, "config.json")
    assert parse_config(ORIGINAL | agreeing | {"layer_types": list(CONFIG.layer_types)}, "config.json") == read
    assert next(iter(change)) in message(ORIGINAL | change)


FACTOR = CONFIG.rope.concentration


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("key", "agrees", "differs"),
    [
        ("truncate", [False, None], [True, 1, "no"]),
        ("attention_factor", [None, FACTOR, FACTOR + 1e-8], [1.0, FACTOR + 0.01, True, 0, -1, "1"]),
        ("rope_type", ["yarn", None], ["linear", "default", 3]),
        ("type", ["yarn", None], ["longrope"]),
        ("mscale", [None], [1.0]),
        ("partial_rotary_factor", [None, 1.0, 1], [0.5, 0]),
    ],
)
def test_the_original_spelling_has_one_value_of_what_only_a_section_says(
    section: str, key: str, agrees: list[object], differs: list[object]
) -> None:
    read = parse_config(ORIGINAL, "config.json")
    for value in agrees:
        assert parse_config(ORIGINAL | {section: {key: value}}, "config.json") == read, value
    for value in differs:
        name = key.replace("type", "rope_type").replace("rope_rope", "rope")
        assert f"{section}.{name}: found {value!r}, " in message(ORIGINAL | {section: {key: value}}), value


def test_the_original_spelling_with_lengths_and_types_of_hugging_face() -> None:
    read = parse_config(ORIGINAL, "config.json")
    length = CONFIG.max_position_embeddings
    agreeing = {"max_position_embeddings": length, "layer_types": None, "partial_rotary_factor": 1.0}
    assert parse_config(ORIGINAL | agreeing, "config.json") == read
    assert f"max_position_embeddings: found 4096, gpt-oss has {length}" in message(
        ORIGINAL | {"max_position_embeddings": 4096}
    )
    assert "partial_rotary_factor: found 0.5" in message(ORIGINAL | {"partial_rotary_factor": 0.5})
    assert "partial_rotary_factor: found 0.5" in message(HUGGING_FACE | {"partial_rotary_factor": 0.5})


def test_a_complete_file_of_hugging_face_with_keys_of_the_original_is_read_as_such() -> None:
    more = {key: value for key, value in ORIGINAL.items() if key not in HUGGING_FACE}
    assert "rope_scaling_factor" in more
    assert parse_config(HUGGING_FACE | more, "config.json") == CONFIG
    full = HUGGING_FACE | {"layer_types": ["full_attention"] * 24, "rope_scaling_factor": 32.0}
    assert parse_config(full, "config.json").layer_types == ("full_attention",) * 24
    assert "rope_scaling_factor: found 16.0" in message(HUGGING_FACE | more | {"rope_scaling_factor": 16.0})


@pytest.mark.parametrize("section", [{}, {"rope_type": None}, {"type": ""}])
def test_a_section_without_a_kind_of_rope(section: dict[str, Any]) -> None:
    rope = {key: value for key, value in ROPE.items() if key != "rope_type"}
    assert "rope_scaling.rope_type: " in message(HUGGING_FACE | {"rope_scaling": rope | section})


def test_a_value_of_null_leaves_the_other_spelling() -> None:
    raw = HUGGING_FACE | {"num_local_experts": None, "num_experts": 32}
    assert parse_config(raw, "config.json") == CONFIG


def test_presets_are_believed() -> None:
    for config in PRESETS.values():
        assert violations(config) == []


def changed(name: str, value: object) -> ModelConfig:
    if name.startswith("rope."):
        changes: dict[str, Any] = {name.removeprefix("rope."): value}
        return dataclasses.replace(CONFIG, rope=dataclasses.replace(CONFIG.rope, **changes))
    changes = {name: value}
    return dataclasses.replace(CONFIG, **changes)


def test_every_number_has_bounds() -> None:
    fields = [field for field in dataclasses.fields(ModelConfig) if field.type in ("int", "float")]
    fields_of_rope = [field for field in dataclasses.fields(Yarn) if field.type != "bool"]
    assert BELIEVED.keys() == {field.name for field in fields} | {f"rope.{field.name}" for field in fields_of_rope}


@pytest.mark.parametrize("name", BELIEVED)
def test_numbers_out_of_bounds(name: str) -> None:
    least, most = BELIEVED[name]
    wrong: list[object] = [0, -1, True, "1", math.inf, -math.inf, math.nan, 2**62, 10**400, most * 2]
    wrong += [1.5] if isinstance(least, int) else [1e-320, least / 2]
    for value in wrong:
        (problem, *_) = violations(changed(name, value))
        assert problem.startswith(f"{name}: found ") and len(problem) < 200, value
