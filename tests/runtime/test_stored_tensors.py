"""Files of safetensors are read where they are mapped: as safetensors reads them, and damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_export.errors import ArtifactError
from gptoss_export.model.dtypes import torch_dtype
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
