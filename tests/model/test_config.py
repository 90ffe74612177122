"""config.json is read in both spellings, and a wrong one is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.layouts.hugging_face import plain_config_json
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import CheckpointError
from gptoss_export.model.config import ModelConfig, parse_config, read_config


def test_spellings_agree(checkpoints: dict[str, Path]) -> None:
    hugging_face, original = read_config(checkpoints["hf"]), read_config(checkpoints["original"])
    assert original.rope == hugging_face.rope
    same = (
        "hidden_size",
        "num_local_experts",
        "num_experts_per_tok",
        "layer_types",
        "swiglu_limit",
        "max_position_embeddings",
        "sliding_window",
    )
    assert [getattr(original, key) for key in same] == [getattr(hugging_face, key) for key in same]


def test_keys_that_a_config_leaves_out_are_those_of_gpt_oss() -> None:
    """The original spelling has no key for some settings, and a file of Hugging Face may leave them out."""
    original = parse_config(LAYOUTS["original"].config_json(PRESETS["20b"]), "config.json")
    assert original == dataclasses.replace(PRESETS["20b"], eos_token_ids=())
    raw = plain_config_json(PRESETS["20b"])
    for key in ("rms_norm_eps", "swiglu_alpha", "swiglu_limit", "layer_types"):
        del raw[key]
    for key in ("beta_fast", "beta_slow"):
        del raw["rope_scaling"][key]
    assert parse_config(raw, "config.json") == PRESETS["20b"]
    del raw["rope_scaling"]["truncate"]  # transformers rounds the ends of the ramp unless it is told not to
    assert parse_config(raw, "config.json").rope == dataclasses.replace(PRESETS["20b"].rope, truncate=True)


def test_equals_what_transformers_reads(checkpoints: dict[str, Path]) -> None:
    from transformers import AutoConfig

    theirs, ours = AutoConfig.from_pretrained(checkpoints["hf"]), read_config(checkpoints["hf"])
    for key in ("hidden_size", "head_dim", "num_local_experts", "sliding_window", "rms_norm_eps", "swiglu_limit"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert list(ours.layer_types) == theirs.layer_types
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


def test_json_round_trip() -> None:
    for config in PRESETS.values():
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_newer_spelling_of_rope() -> None:
    raw = plain_config_json(PRESETS["20b"])
    rope = raw.pop("rope_scaling") | {"rope_theta": raw.pop("rope_theta")}
    assert parse_config(raw | {"rope_parameters": rope}, "config.json") == PRESETS["20b"]


def test_a_model_without_sliding_layers_needs_no_window() -> None:
    raw = plain_config_json(PRESETS["tiny"]) | {"layer_types": ["full_attention"] * 4, "sliding_window": None}
    assert parse_config(raw, "config.json").window(0) == 0


def test_all_problems_are_named_at_once() -> None:
    raw = plain_config_json(PRESETS["20b"])
    del raw["hidden_size"]
    raw |= {"num_attention_heads": "many", "hidden_act": "gelu"}
    raw["rope_scaling"]["rope_type"] = "linear"
    with pytest.raises(CheckpointError) as caught:
        parse_config(raw, "config.json")
    for part in ("hidden_size: missing", "num_attention_heads: found 'many'", "hidden_act", "rope_type"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 100}, "multiple of 32"),
        ({"num_key_value_heads": 7}, "multiple of num_key_value_heads"),
        ({"head_dim": 63}, "even number"),
        ({"num_experts_per_tok": 99}, "at most"),
        ({"layer_types": ["full_attention"]}, "1 entries"),
        ({"layer_types": ["odd"] * 24}, "found odd"),
        ({"sliding_window": 0}, "above 0"),
        ({"layer_types": 3}, "list of strings"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"eos_token_id": 10**9}, "eos_token_id"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type: found 'linear'"),
        ({"rope_scaling": plain_config_json(PRESETS["20b"])["rope_scaling"] | {"beta_slow": 0}}, "rope.beta_slow"),
        ({"rope_scaling": None}, "rope_parameters: missing"),
        ({"hidden_size": float("nan")}, "finite"),
        ({"hidden_size": float("inf")}, "finite"),
        ({"hidden_size": 96.5}, "hidden_size: found 96.5, expected a finite int"),
        ({"hidden_size": True}, "hidden_size: found True, expected a finite int"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps: found inf, expected a finite float"),
        ({"rms_norm_eps": False}, "rms_norm_eps: found False, expected a finite float"),
        ({"layer_types": None, "num_hidden_layers": 10**6}, "num_hidden_layers: found 1000000, expected 1 to 1024"),
        ({"layer_types": None, "num_hidden_layers": 2**62}, "num_hidden_layers: found .*, expected 1 to 1024"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_config(plain_config_json(PRESETS["20b"]) | change, "config.json")


def test_file_problems(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="as JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected an object"):
        read_config(tmp_path)
