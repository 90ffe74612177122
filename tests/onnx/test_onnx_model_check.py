"""A model that is not its manifest's is refused before onnxruntime opens it, though hashes and shapes were adapted."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest
from onnx_helpers import KINDS, cpu_artifacts, cuda_artifact

from gptoss_export import load
from gptoss_export.artifact.files import describe_file
from gptoss_export.artifact.manifest import Manifest, load_manifest, save_manifest
from gptoss_export.errors import ArtifactError
from gptoss_export.model.config import FULL, ModelConfig
from gptoss_export.model.dtypes import ITEM_SIZES, STORED
from gptoss_export.model.parameters import parameters
from gptoss_export.targets.onnx.check import check_closed, check_model
from gptoss_export.targets.onnx.model_proto import read_model
from gptoss_export.targets.onnx.stored_tensors import TYPES


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cpu_artifacts(checkpoints["hf"], tmp_path_factory)


def linked(artifact: Path, folder: Path) -> Path:
    """A copy of an artifact that shares its files. Who changes a file must replace it."""
    for path in artifact.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(artifact)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return folder


def save(manifest: Manifest, folder: Path) -> None:
    """Save a manifest whose hashes are those of the files in the folder."""
    (folder / "manifest.json").unlink()
    files = {name: describe_file(folder / name) for name in manifest.files}
    save_manifest(dataclasses.replace(manifest, files=files), folder)


def with_weights(manifest: Manifest) -> Manifest:
    """The manifest with the weights that its model has: shapes and dtypes follow, stored parts stay."""
    weights = {}
    for item in parameters(manifest.model, manifest.dtype):
        weights[item.name] = dataclasses.replace(manifest.weights[item.name], shape=item.shape, dtype=item.dtype)
    return dataclasses.replace(manifest, weights=weights)


def model(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, **changes))


def sizes(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, sizes=dataclasses.replace(manifest.sizes, **changes))


def rope(config: ModelConfig) -> Any:
    assert config.rope is not None
    return dataclasses.replace(config.rope, factor=16.0)


FORGED: Mapping[str, Callable[[Manifest], Manifest]] = {
    "sizes.max_context": sizes(max_context=4351),
    "sizes.widths[0]": sizes(widths=(3,)),
    "sizes.prefill_chunks[0]": sizes(prefill_chunks=(32,)),
    "model.head_dim": model(head_dim=16),
    "model.num_key_value_heads": model(num_key_value_heads=1),
    "model.num_attention_heads": model(num_attention_heads=4),
    "model.vocab_size": model(vocab_size=520, eos_token_ids=()),
    "model.hidden_size": model(hidden_size=64),
    "model.intermediate_size": model(intermediate_size=32),
    "model.num_local_experts": model(num_local_experts=6),
    "model.num_experts_per_tok": model(num_experts_per_tok=2),
    "model.sliding_window": model(sliding_window=31),
    "model.rms_norm_eps": model(rms_norm_eps=1e-6),
    "model.swiglu_limit": model(swiglu_limit=6.0),
    "model.layer_types[0]": lambda manifest: model(layer_types=(FULL, *manifest.model.layer_types[1:]))(manifest),
    "model.rope.factor": lambda manifest: model(rope=rope(manifest.model))(manifest),
    "dtype": lambda manifest: dataclasses.replace(manifest, dtype="bfloat16"),
    "model.num_hidden_layers": lambda manifest: model(
        num_hidden_layers=manifest.model.num_hidden_layers - 1, layer_types=manifest.model.layer_types[:-1]
    )(manifest),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", FORGED)
def test_a_manifest_of_another_model(artifacts: dict[str, Path], tmp_path: Path, value: str, kind: str) -> None:
    """Everything that says what the model is was changed together: config, sizes, shapes and hashes."""
    folder = linked(artifacts[kind], tmp_path)
    manifest = FORGED[value](load_manifest(folder))
    save(with_weights(manifest), folder)
    load_manifest(folder)  # does not contradict itself
    with pytest.raises(ArtifactError) as error:
        load(folder)
    assert "model.onnx: was compiled for something else than manifest.json says" in str(error.value)
    assert f"- {value}: the code says" in str(error.value)


def test_another_option(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = linked(artifacts["default"], tmp_path)
    save(dataclasses.replace(load_manifest(folder), target_options={"portable": True}), folder)
    with pytest.raises(ArtifactError, match=r"target_options.portable: the code says False, the manifest True"):
        load(folder)


def changed(artifact: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an artifact with another model, whose hash is in the manifest."""
    linked(artifact, folder)
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    change(proto)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    save(load_manifest(folder), folder)
    return folder


def stored(proto: onnx.ModelProto) -> onnx.TensorProto:
    """An initializer whose data lies in a file of weights."""
    return next(item for item in proto.graph.initializer if item.name.endswith("o_proj.weight"))


def place(tensor: onnx.TensorProto, key: str, value: object) -> None:
    (entry,) = (entry for entry in tensor.external_data if entry.key == key)
    entry.value = str(value)


def offset(proto: onnx.ModelProto) -> int:
    return int(next(entry.value for entry in stored(proto).external_data if entry.key == "offset"))


def outside(proto: onnx.ModelProto) -> None:
    place(stored(proto), "location", "../secret")


def unlisted(proto: onnx.ModelProto) -> None:
    place(stored(proto), "location", "weights/other.bin")


def shifted(proto: onnx.ModelProto) -> None:
    place(stored(proto), "offset", offset(proto) + 64)


def beyond(proto: onnx.ModelProto) -> None:
    place(stored(proto), "offset", 1 << 40)


def negative(proto: onnx.ModelProto) -> None:
    place(stored(proto), "offset", -64)


def longer(proto: onnx.ModelProto) -> None:
    place(stored(proto), "length", 64)


def other_key(proto: onnx.ModelProto) -> None:
    stored(proto).external_data.add(key="basepath", value="/tmp")


def key_twice(proto: onnx.ModelProto) -> None:
    stored(proto).external_data.add(key="location", value="../secret")


def other_dtype(proto: onnx.ModelProto) -> None:
    stored(proto).data_type = onnx.TensorProto.FLOAT16


def other_shape(proto: onnx.ModelProto) -> None:
    stored(proto).dims[0] //= 2


def other_name(proto: onnx.ModelProto) -> None:
    stored(proto).name = "x"


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add().CopyFrom(stored(proto))


def inside(proto: onnx.ModelProto) -> None:
    tensor = stored(proto)
    tensor.raw_data = bytes(8)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add().values.CopyFrom(stored(proto))


def in_a_constant(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Constant")
    node.attribute[0].t.CopyFrom(stored(proto))


def in_a_function(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.functions[0].node if node.op_type == "Constant" and node.attribute[0].t.dims)
    node.attribute[0].t.CopyFrom(stored(proto))


def in_a_loop(proto: onnx.ModelProto) -> None:
    loop = next(node for node in proto.functions[0].node if node.op_type == "Loop")
    next(item for item in loop.attribute if item.name == "body").g.initializer.add().CopyFrom(stored(proto))


def no_description(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def another_property(proto: onnx.ModelProto) -> None:
    proto.metadata_props.add(key="ort_config", value="{}")


MODELS = {
    outside: "'../secret' is not among the files of the manifest",
    unlisted: "'weights/other.bin' is not among the files of the manifest",
    shifted: "o_proj.weight: found type 16",
    beyond: "are outside of the file",
    negative: "expected numbers",
    longer: "o_proj.weight: found type 16",
    other_key: "expected location, offset and length",
    key_twice: "found the key 'location' twice",
    other_dtype: "found type 10",
    other_shape: "o_proj.weight: found type 16",
    other_name: "'x': no weight of the manifest",
    twice: "found twice",
    inside: "o_proj.weight: found type 16",
    sparse: "graph: found field 15, which no build writes",
    in_a_constant: "of a node: found data in another file",
    in_a_function: "of a node: found data in another file",
    in_a_loop: "of a node: found data in another file",
    no_description: "does not say what it was compiled for",
    another_property: "found the properties 'ort_config', expected none",
}


@pytest.mark.parametrize("change", MODELS, ids=lambda change: change.__name__)
def test_a_model_with_other_weights(
    artifacts: dict[str, Path], tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    folder = changed(artifacts["default"], tmp_path / "a", change)
    (folder / "weights" / "other.bin").write_bytes(bytes(1 << 20))
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    with pytest.raises(ArtifactError, match=MODELS[change]):
        load(folder)


def test_a_linked_file_of_weights(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = linked(artifacts["default"], tmp_path / "a")
    shard = next((folder / "weights").iterdir())
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is a link, expected a file in the folder of the artifact"):
        load(folder)


def test_weights_of_another_layout(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """The header of a file of weights, and the region that the model reads, were changed together."""
    cut: dict[str, Any] = {}

    def change(proto: onnx.ModelProto) -> None:
        tensor = stored(proto)
        tensor.dims[0] //= 2
        length = next(entry for entry in tensor.external_data if entry.key == "length")
        length.value = str(int(length.value) // 2)
        cut["file"] = next(entry.value for entry in tensor.external_data if entry.key == "location")
        cut["name"] = tensor.name

    folder = changed(artifacts["default"], tmp_path / "a", change)
    path = folder / cut["file"]
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    entry = header[cut["name"]]
    entry["shape"][0] //= 2
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = [begin, (begin + end) // 2]
    path.unlink()
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    path.write_bytes(data[:8] + text + data[8 + length :])
    save(load_manifest(folder), folder)
    with pytest.raises(ArtifactError, match=r"o_proj.weight has the stored shape .*, expected"):
        load(folder)


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 5) + b"{}", struct.pack("<Q", 2) + b"{}"],
    ids=["empty", "length", "list", "short", "no tensors"],
)
def test_a_damaged_header_of_weights(artifacts: dict[str, Path], tmp_path: Path, header: bytes) -> None:
    folder = linked(artifacts["default"], tmp_path)
    path = sorted((folder / "weights").iterdir())[0]
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(header.ljust(size, b" "))
    save(load_manifest(folder), folder)
    with pytest.raises(ArtifactError, match=path.name):
        load(folder)


def test_weights_of_several_parts(artifacts: dict[str, Path]) -> None:
    """q, k and v are stored apart: each part is an initializer of its own."""
    manifest = load_manifest(artifacts["default"])
    names = [name for name, weight in manifest.weights.items() if len(weight.parts) > 1]
    found = read_model((artifacts["default"] / "model.onnx").read_bytes()).initializers
    assert names and all(f"{name}.{index}" in found for name in names for index in range(3))


def test_models_for_cuda(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Their experts lie in files of their own, which are no weights of the manifest but files of it."""
    _, artifact = cuda_artifact(tmp_path_factory)
    manifest, path = load_manifest(artifact), artifact / "model.onnx"
    check_model(path, path.read_bytes(), manifest)
    check_closed(artifact / "probe.onnx", (artifact / "probe.onnx").read_bytes())
    with pytest.raises(ArtifactError, match="expected data in the model"):
        check_closed(path, path.read_bytes())

    def swap(proto: onnx.ModelProto) -> None:
        first, second = [item for item in proto.graph.initializer if item.name.endswith("down_proj_blocks")][:2]
        regions = [[(entry.key, entry.value) for entry in item.external_data] for item in (first, second)]
        for item, region in zip((second, first), regions, strict=True):
            for key, value in region:
                place(item, key, value)

    folder = changed(artifact, tmp_path, swap)
    with pytest.raises(ArtifactError, match=r"layers.0.mlp.experts.down_proj_blocks: found type 2"):
        check_model(folder / "model.onnx", (folder / "model.onnx").read_bytes(), load_manifest(folder))


def test_every_cut_of_a_model_is_refused(artifacts: dict[str, Path]) -> None:
    """No length of a file leads to an error of Python's own."""
    data = (artifacts["default"] / "model.onnx").read_bytes()
    whole = read_model(data)
    for length in range(0, len(data), 97):
        try:
            assert read_model(data[:length]) != whole
        except ValueError:
            continue


def test_changed_bytes_of_a_model(artifacts: dict[str, Path]) -> None:
    """Random bytes at random places: a ValueError at most."""
    data, random = (artifacts["default"] / "model.onnx").read_bytes(), Random(1)
    refused = 0
    for _ in range(150):
        begin = random.randrange(len(data))
        changed_data = data[:begin] + random.randbytes(random.randrange(1, 40)) + data[begin + random.randrange(40) :]
        try:
            read_model(changed_data)
        except ValueError:
            refused += 1
    assert refused > 75


def test_graphs_inside_of_each_other() -> None:
    def field(number: int, data: bytes) -> bytes:
        length, digits = len(data), bytearray()
        while length > 127:
            digits.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2, *digits, length]) + data

    graph = b""
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))  # a node with an attribute that is a graph
    with pytest.raises(ValueError, match="found more than 32 graphs inside of each other"):
        read_model(field(7, graph))


def test_every_stored_dtype_has_an_onnx_type() -> None:
    assert TYPES.keys() == STORED.keys()
    sizes = {name: ITEM_SIZES[dtype] for name, dtype in STORED.items()}
    assert {name: size for name, (_, size) in TYPES.items()} == sizes
