"""What an ONNX artifact for cpu holds, and the commands on it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import onnx
import onnx_helpers
import pytest
import torch
from onnx_helpers import KINDS, build_onnx, cpu_artifacts, texts_of_this_machine

from gptoss_export import load
from gptoss_export.artifact.manifest import load_manifest, save_manifest
from gptoss_export.errors import LoweringError
from gptoss_export.model.ops import OPS
from gptoss_export.targets.onnx.converters import CONVERTERS


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cpu_artifacts(checkpoints["hf"], tmp_path_factory)


def test_weights_stay_where_they_are(artifacts, checkpoints):
    model = onnx.load(artifacts["portable"] / "model.onnx", load_external_data=False)
    assert len(model.graph.initializer) > 50
    inside = [item.name for item in model.graph.initializer if item.data_location != onnx.TensorProto.EXTERNAL]
    assert inside == ["logits_from", "logits_to"]
    assert (artifacts["portable"] / "model.onnx").stat().st_size < 100_000
    for path in (artifacts["portable"] / "weights").iterdir():
        assert path.samefile(checkpoints["hf"] / path.name)
    assert not {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert {(function.domain, function.name) for function in model.functions} == {
        ("gptoss", "Mxfp4Experts"),
        ("gptoss", "SinkAttention"),
    }


def test_onnx_accepts_a_copy(artifacts, tmp_path):
    """By path, with shape inference; a copy, since it refuses files with several hard links."""
    for kind, folder in artifacts.items():
        copy = shutil.copytree(folder, tmp_path / kind)
        onnx.checker.check_model(str(copy / "model.onnx"), full_check=True)
        inferred = str(tmp_path / f"{kind}.onnx")
        onnx.shape_inference.infer_shapes_path(str(copy / "model.onnx"), inferred, strict_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_arch_and_options(artifacts, kind):
    """A model has no machine code, so its arch is `any`; `portable` is an option."""
    manifest = load_manifest(artifacts[kind])
    portable = kind == "portable"
    assert manifest.archs == ("any",)
    assert manifest.target_options == {"portable": portable}
    assert manifest.programs == {}
    properties = onnx.load(artifacts[kind] / "model.onnx", load_external_data=False).metadata_props
    (description,) = properties
    assert description.key == "gptoss_export"
    described = json.loads(description.value)
    assert described["sizes"] == manifest.sizes.to_json() | {"widths": [2], "prefill_chunks": [64]}
    assert described["target_options"] == {"portable": portable}
    assert described["model"] == json.loads(json.dumps(manifest.model.to_json()))
    config = json.loads((artifacts[kind] / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is not portable


def test_commands(artifacts, cli, tmp_path):
    artifact = artifacts["default"]
    code, out, err = cli("inspect", artifact)
    assert code == 0, err
    assert "onnx for cpu (any), float32" in out
    code, out, err = cli("bench", artifact, "--context", "70", "--batch", "1,2", "--json")
    assert code == 0, err
    assert [row["batch"] for row in json.loads(out)["measurements"]] == [1, 2]
    code, _, err = cli("bench", artifact, "--context", "70", "--profile")
    assert code == 2
    assert "expected an artifact for cuda" in err


def test_run_stops_at_stop_tokens(artifacts, cli, tmp_path):
    """The stop token is one that the model does generate; the expected tokens are those of the other kind of model."""
    expected = load(artifacts["portable"]).generate([1, 2, 3], 5, stop_tokens=()).tokens
    assert len(set(expected)) == 5
    stopping = shutil.copytree(artifacts["default"], tmp_path / "stopping")
    save_manifest(dataclasses.replace(load_manifest(stopping), stop_tokens=(expected[2],)), stopping)
    for option, tokens in ([], expected[:3]), (["--no-stop"], expected):
        code, out, err = cli("run", stopping, "--tokens", "1,2,3", "--max-new-tokens", "5", "--json", *option)
        assert code == 0, err
        assert json.loads(out)["tokens"] == tokens


def test_two_builds_are_the_same(artifacts, checkpoints, tmp_path):
    again = build_onnx(checkpoints["hf"], tmp_path / "again", "default")
    for name in "model.onnx", "genai_config.json":
        assert (again / name).read_bytes() == (artifacts["default"] / name).read_bytes()
    assert load_manifest(again).files == load_manifest(artifacts["default"]).files


@pytest.mark.parametrize("kind", KINDS)
def test_names_no_folder_of_the_building_machine(artifacts, checkpoints, tmp_path, kind):
    assert texts_of_this_machine(artifacts[kind], checkpoints["hf"]) == []
    (tmp_path / "a").mkdir()
    model = onnx.load(artifacts[kind] / "model.onnx", load_external_data=False)
    model.graph.node[3].doc_string = "text"
    model.functions[0].node[2].metadata_props.add(key="stack", value="text")
    onnx.save(model, tmp_path / "a" / "model.onnx")
    (tmp_path / "a" / "genai_config.json").write_text(f'{{"folder": "{checkpoints["hf"]}"}}', encoding="utf-8")
    assert texts_of_this_machine(tmp_path / "a", checkpoints["hf"]) == [
        f"genai_config.json: {checkpoints['hf']}",
        "model.onnx: 'text'",
        "model.onnx: 'stack'",
    ]


def test_an_op_without_converter_is_named(checkpoints, tmp_path, monkeypatch):
    monkeypatch.delitem(CONVERTERS, torch.ops.gptoss.unembed.default)
    with pytest.raises(LoweringError, match=r"unembed.*gptoss.unembed.default"):
        build_onnx(checkpoints["hf"], tmp_path / "a", "default")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.overload in CONVERTERS])
def test_converters_take_the_arguments_of_their_ops(name):
    writer, *arguments = inspect.signature(CONVERTERS[OPS[name].overload]).parameters.values()
    assert writer.name == "writer"
    assert [argument.name for argument in arguments] == list(OPS[name].argument_names)
    assert all(argument.kind is inspect.Parameter.KEYWORD_ONLY for argument in arguments)


def test_the_helper_undoes_the_layout():
    """`unpack` of the helpers is what other tests compare with."""
    from gptoss_export.targets.onnx.repack import repack

    blocks = torch.randint(0, 256, (6, 3, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(onnx_helpers.unpack(repack(blocks)), blocks)
