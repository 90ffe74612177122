"""What a manifest may say. Compiled code checks nothing, so the manifest is compared with the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_export.artifact.manifest import SCHEMA_VERSION, Manifest, load_manifest, rebuild_command, save_manifest
from gptoss_export.artifact.programs import model_programs, programs_of
from gptoss_export.errors import ArtifactError


@pytest.fixture(scope="module")
def written(uncompiled: Path) -> dict[str, Any]:
    """A manifest as `build` writes it."""
    return json.loads((uncompiled / "manifest.json").read_text())


@pytest.fixture
def data(written: dict[str, Any]) -> dict[str, Any]:
    """A copy that a test may change."""
    return json.loads(json.dumps(written))


def read(data: Any, folder: Path) -> Manifest:
    (folder / "manifest.json").write_text(json.dumps(data))
    return load_manifest(folder)


def test_round_trip(data: dict[str, Any], tmp_path: Path) -> None:
    manifest = read(data, tmp_path)
    (tmp_path / "again").mkdir()
    save_manifest(manifest, tmp_path / "again")
    assert load_manifest(tmp_path / "again") == manifest
    assert json.loads((tmp_path / "again" / "manifest.json").read_text()) == data


def test_what_build_writes_is_accepted(data: dict[str, Any], tmp_path: Path) -> None:
    manifest = read(data, tmp_path)
    model = {"decode_1", "decode_3", "prefill_16", "prefill_64", "unembed_1", "unembed_64"}
    assert set(manifest.programs) == model | {"choose_drawn", "choose_limited", "choose_adjusted"}
    expected = programs_of(manifest.sizes, manifest.device)
    assert manifest.missing_programs(expected) == []
    del data["programs"]["prefill_16"], data["programs"]["choose_drawn"]
    assert read(data, tmp_path).missing_programs(expected) == ["prefill_16", "choose_drawn"]
    assert read(data, tmp_path).missing_programs(model_programs(manifest.sizes)) == ["prefill_16"]


def swap(items: list[Any], one: int, other: int) -> None:
    items[one], items[other] = items[other], items[one]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: swap(p["decode_3"]["inputs"], 0, 1), "decode_3: input 0 is 'positions', expected 'tokens'"),
        (lambda p: swap(p["decode_3"]["inputs"], 5, 6), "decode_3: input 5 is 'v_cache.0', expected 'k_cache.0'"),
        (lambda p: p["decode_3"]["inputs"].insert(0, p["decode_3"]["inputs"].pop()), "input 0 is 'lm_head.weight'"),
        (lambda p: p["decode_3"]["inputs"].insert(1, p["decode_3"]["inputs"][0]), "input 1 is 'tokens'"),
        (lambda p: p["decode_3"]["inputs"].pop(), "input 76 is nothing, expected 'lm_head.weight'"),
        (
            lambda p: p["decode_3"]["inputs"][0].update(dtype="float32"),
            r"input tokens is data float32 \[3\], expected data int64 \[3\]",
        ),
        (lambda p: p["decode_3"]["inputs"][5].update(dtype="uint8"), "k_cache.0 is cache uint8"),
        (lambda p: p["decode_3"]["inputs"][5].update(role="data"), "k_cache.0 is data float32"),
        (lambda p: p["decode_3"]["inputs"][5].update(shape=[9, 2, 64, 32]), r"k_cache.0 is cache float32 \[9, 2, 64"),
        (lambda p: p["decode_3"]["inputs"][-1].update(dtype="float8"), "lm_head.weight is weight float8"),
        (lambda p: p["unembed_1"]["inputs"][0].update(dtype="bfloat16"), "unembed_1: input hidden is data bfloat16"),
        (lambda p: p["decode_3"]["outputs"].reverse(), "decode_3: output 0 is 'next_positions', expected 'logits'"),
        (lambda p: p["decode_3"]["outputs"].pop(), "decode_3: output 4 is nothing, expected 'next_positions'"),
        (
            lambda p: p["decode_3"]["outputs"][0].update(shape=[3, 7]),
            r"output logits .* \[3, 7\], expected data float32",
        ),
        (lambda p: p["decode_3"]["outputs"][1].update(dtype="uint8"), r"top is data uint8 \[3\], expected data int64"),
        (lambda p: p["unembed_64"]["outputs"][2].update(shape=[1]), "unembed_64: output top_logprob"),
        (
            lambda p: p["prefill_16"]["outputs"][0].update(shape=[17, 96]),
            r"hidden is data float32 \[17, 96\], expected .*\[16, 96\]",
        ),
        (
            lambda p: p["choose_drawn"]["inputs"][4].update(shape=[4]),
            r"temperature is state float32 \[4\], expected state float32 \[3\]",
        ),
        (
            lambda p: p["choose_adjusted"]["inputs"][0].update(shape=[3, 512]),
            r"logits is data float32 \[3, 512\], expected data float32 \[rows, 512\]",
        ),
        (lambda p: p.update(choose_drawn=p["choose_adjusted"]), "choose_drawn: input 9 is 'sampling.repetition_"),
        (lambda p: p["decode_3"]["inputs"][0].update(role="constant"), "malformed"),
        (lambda p: p.update({"unembed_x": p["unembed_1"]}), "programs: found unembed_x"),
        (lambda p: p.update({"unembed_0": p["unembed_1"]}), "programs: found unembed_0"),
    ],
)
def test_a_call_that_no_build_makes_is_refused(
    data: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(data["programs"])
    with pytest.raises(ArtifactError, match=message):
        read(data, tmp_path)


def test_many_wrong_sizes_are_one_line(data: dict[str, Any], tmp_path: Path) -> None:
    data["sizes"]["max_context"] = 99
    with pytest.raises(
        ArtifactError,
        match=r"decode_3: input pages.full_attention \(and 1 more\) is table int32 \[3, 69\], expected .* \[3, 2\]",
    ) as caught:
        read(data, tmp_path)
    assert str(caught.value).count("program decode_3: input") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "weight lm_head.weight: missing"),
        (lambda w: w.update(ghost=w["lm_head.weight"]), "weight ghost: the model has no parameter of that name"),
        (
            lambda w: w["lm_head.weight"].update(shape=[512, 95]),
            r"is float32 \[512, 95\], expected float32 \[512, 96\]",
        ),
        (lambda w: w["lm_head.weight"].update(dtype="uint8"), r"is uint8 \[512, 96\], expected float32"),
        (lambda w: w["model.norm.weight"].update(parts=[]), "weight model.norm.weight: has no parts"),
        (lambda w: w["model.norm.weight"]["parts"][0].update(file="other"), "'other' is not among the files"),
        (lambda w: w["model.norm.weight"]["parts"][0].pop("tensor"), "malformed"),
    ],
)
def test_weights_are_those_of_the_model(
    data: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(data["weights"])
    with pytest.raises(ArtifactError, match=message):
        read(data, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["sizes"].update(extra=1), "expected an object with widths, max_context, prefill_chunks"),
        (lambda d: d["sizes"].update(prefill_chunks="16"), "found '16', expected a list"),
        (lambda d: d["programs"]["decode_3"].update(extra=1), "expected an object with inputs, outputs"),
        (lambda d: d["programs"]["decode_3"]["inputs"][0].update(extra=1), "expected an object with name, role, shape"),
        (lambda d: d["programs"]["decode_3"]["inputs"][0].update(shape={"3": 3}), "found {'3': 3}, expected a list"),
        (lambda d: d["weights"]["lm_head.weight"].update(extra=1), "expected an object with shape, dtype, parts"),
        (lambda d: d["weights"]["lm_head.weight"]["parts"][0].update(extra=1), "malformed"),
        (lambda d: d["files"]["tokenizer.json"].update(sha256=None), "has the sha256 None, expected 64 hexadecimal"),
        (lambda d: d["files"]["tokenizer.json"].update(sha256="A" * 64), "expected 64 hexadecimal digits"),
        (lambda d: d["files"]["tokenizer.json"].update(bytes=1.5), "has 1.5 bytes, expected a whole number"),
        (lambda d: d["files"]["tokenizer.json"].update(bytes=True), "has True bytes, expected a whole number"),
        (lambda d: d.update(archs="sm_90"), "found 'sm_90', expected a list"),
        (lambda d: d.update(stop_tokens=""), "found '', expected a list"),
        (lambda d: d["model"].update(layer_types="full_attention"), "found 'full_attention', expected a list"),
        (lambda d: d["model"].update(extra=1), "malformed"),
        (lambda d: d.update(extra=1), "malformed"),
    ],
)
def test_everything_in_a_manifest_means_something(
    data: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A key that nobody reads, and text in place of a list, are refused."""
    change(data)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        read(data, tmp_path)


@pytest.mark.parametrize("value", [5, [], True])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("provenance.machine", "a string"),
        ("provenance.system", "a string"),
        ("provenance.gpu", "a string or null"),
        ("provenance.options", "an object"),
        ("provenance.source_sha256", "a string"),
        ("versions.torch", "a string"),
        ("versions.python", "a string"),
        ("target", "a string"),
        ("source", "a string"),
        ("target_options", "an object"),
    ],
)
def test_a_value_of_another_type(data: dict[str, Any], tmp_path: Path, path: str, expected: str, value: object) -> None:
    """`inspect` shows all of them."""
    stem, _, name = path.rpartition(".")
    (data[stem] if stem else data)[name] = value
    with pytest.raises(ArtifactError, match=re.escape(f"{path}: found {value!r}, expected {expected}")):
        read(data, tmp_path)


@pytest.mark.parametrize("value", [None, 1, "false"])
def test_whether_yarn_rounds_is_true_or_false(data: dict[str, Any], tmp_path: Path, value: object) -> None:
    data["model"]["rope"]["truncate"] = value
    with pytest.raises(ArtifactError, match=re.escape(f"rope.truncate: found {value!r}, expected true or false")):
        read(data, tmp_path)


def test_a_dtype_that_no_artifact_computes_in_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dtype: found 'int64', expected float32 or bfloat16"):
        read(data | {"dtype": "int64"}, tmp_path)


def test_another_schema_is_refused_with_the_command_that_builds_again(data: dict[str, Any], tmp_path: Path) -> None:
    """Schema 4 had the sizes beside the other keys."""
    options = data["provenance"]["options"] | {"device": "cuda", "arch": "sm_80,sm_90", "dtype": "bfloat16"}
    older = data | data.pop("sizes") | {"schema_version": 4, "provenance": {"options": options}}
    folder = tmp_path / "an artifact"
    folder.mkdir()
    with pytest.raises(ArtifactError) as caught:
        read(older, folder)
    command = (
        f"gptoss-export build CHECKPOINT -o '{folder}-new' --target aoti --device cuda --arch sm_80,sm_90 --dtype "
        "bfloat16 --max-batch 3 --widths 1,3 --max-context 4400 --tensor-parallel 1 --prefill-chunk 16 "
        "--prefill-chunk 64 --stop-token 511"
    )
    assert f"schema_version is 4, expected {SCHEMA_VERSION}; build the artifact again: {command}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "portable", "device": "cpu"}, "--portable --device cpu"),  # an arch until schema 4
        ({"portable": True, "gpu_memory": False, "cpu_isa": None}, "--portable"),
        ({"prefill_chunks": [8], "stop_tokens": []}, "--prefill-chunk 8"),
        ({"max_batch": 2, "dtype": "float32"}, "--max-batch 2 --dtype float32"),
        ({"max_batch": 8, "widths": [1, 8]}, "--max-batch 8 --widths 1,8"),
        ({}, ""),
    ],
)
def test_the_command_has_the_options_of_the_build(options: dict[str, Any], words: str) -> None:
    command = rebuild_command({"provenance": {"options": options}}, Path("x"))
    assert command == f"gptoss-export build CHECKPOINT -o x-new {words}".strip()


@pytest.mark.parametrize("data", [{}, {"provenance": None}, {"provenance": {}}, {"provenance": {"options": [1]}}])
def test_the_command_of_a_manifest_without_options(data: dict[str, Any]) -> None:
    assert rebuild_command(data, Path("x")) == "gptoss-export build CHECKPOINT -o x-new"
