"""Files of safetensors are read where they are mapped: as safetensors reads them, and damaged ones are refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import loaded_weights
from gptoss_export.artifact.manifest import Part, WeightSpec, load_manifest
from gptoss_export.errors import ArtifactError
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.runtime import weights
from gptoss_export.runtime.dtype_conversion import FLOATS, converted
from gptoss_export.runtime.stored_tensors import StoredFile


def stored(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_are_those_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "f16": torch.randn(2, 2, 2).half(),
        "f32": torch.randn(7),
        "u8": torch.arange(6, dtype=torch.uint8).view(2, 3),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    found = StoredFile(path).tensors
    expected = load_file(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].shape, torch_dtype(found[name].dtype)) == (tuple(tensor.shape), tensor.dtype)
        assert bytes(found[name].memory) == tensor.view(-1).view(torch.uint8).numpy().tobytes()


FOUR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 8,
        stored(b"{"),
        stored([]),
        stored({"a": 1}),
        stored({"a": FOUR}),
        stored({"a": FOUR}, bytes(15)),
        stored({"a": FOUR | {"shape": [2, 3]}}, bytes(16)),
        stored({"a": FOUR | {"shape": [-2, -2]}}, bytes(16)),
        stored({"a": FOUR | {"shape": [2, 2.0]}}, bytes(16)),
        stored({"a": FOUR | {"shape": [True, 4]}}, bytes(16)),
        stored({"a": FOUR | {"dtype": "F64"}}, bytes(32)),
        (1 << 40).to_bytes(8, "little") + bytes(1000),
        (0).to_bytes(8, "little") + bytes(8),
        stored({"a": FOUR | {"dtype": []}}, bytes(32)),
        stored({"a": FOUR | {"data_offsets": [-16, 0]}}, bytes(16)),
        stored({"a": FOUR | {"data_offsets": [16, 0]}}, bytes(16)),
        stored({"a": FOUR | {"data_offsets": [0.0, 16.0]}}, bytes(16)),
        stored({"a": FOUR | {"data_offsets": "ab"}}, bytes(16)),
        stored({"a": {"dtype": "F32", "shape": [4]}}, bytes(16)),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.safetensors: cannot be read as safetensors"):
        StoredFile(path)


@pytest.mark.parametrize("found", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS)
def test_conversion_is_that_of_torch(found: str, wanted: str) -> None:
    """Every 16-bit number, ties, what is too large for float16, denormals, infinities, NaN."""
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    special = [65519.0, 65520.0, 1e38, 3.4e38, 2**-24, 2**-25, 2**-133, 1.00390625, 1.01171875, -0.0]
    values = (
        halves.view(torch_dtype(found))
        if found != "float32"
        else torch.cat([halves.view(torch.bfloat16).float(), halves.view(torch.float16).float(), torch.tensor(special)])
    )
    expected = values.to(torch_dtype(wanted))
    memory = memoryview(values.view(torch.uint8).numpy().tobytes())
    got = torch.frombuffer(bytearray(converted(memory, found, wanted)), dtype=torch_dtype(wanted))
    assert torch.equal(got.isnan(), expected.isnan())
    same = ~expected.isnan()
    assert np.array_equal(got[same].view(torch.uint8).numpy(), expected[same].view(torch.uint8).numpy())


def test_integers_do_not_become_floats() -> None:
    with pytest.raises(ArtifactError, match="found uint8, which cannot become float32; expected bfloat16, float16"):
        converted(memoryview(b"ab"), "uint8", "float32")


@pytest.mark.parametrize("block", [1, 3, 5, 100])
def test_weights_are_converted_in_blocks(
    uncompiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(weights, "_BLOCK", block)
    tensors = {"a": torch.randn(3, 4).bfloat16(), "b": torch.randn(2, 4).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    spec = WeightSpec((5, 4), "float32", tuple(Part("x.safetensors", name) for name in tensors))
    manifest = dataclasses.replace(load_manifest(uncompiled), weights={"w": spec})
    found = loaded_weights(manifest, tmp_path)["w"]
    assert torch.equal(found, torch.cat([tensor.float() for tensor in tensors.values()]))


def test_a_single_number_is_no_weight(uncompiled: Path, tmp_path: Path) -> None:
    save_file({"a": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    spec = WeightSpec((1,), "float32", (Part("x.safetensors", "a"),))
    with pytest.raises(ArtifactError, match=r"w: stored as a single number, expected \[1\]"):
        loaded_weights(dataclasses.replace(load_manifest(uncompiled), weights={"w": spec}), tmp_path)


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("4,2", 4), ("", None), ("many", None), ("0", None)])
def test_threads_without_torch(monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None) -> None:
    monkeypatch.setattr(weights, "sys", SimpleNamespace(modules={}))
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert weights._threads() == (expected or len(os.sched_getaffinity(0)))
