"""A checkpoint may hold its floats in each dtype of `model.dtypes.STORED`. Programs get the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stored_dtypes import DTYPES, stored_as

from artifacts import compile_nothing, loaded_weights
from gptoss_export import BuildOptions, build
from gptoss_export.checkpoint.layouts.layout import FLOATS, PACKED
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.model.dtypes import STORED, torch_dtype

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model with its floats in each dtype."""
    root = tmp_path_factory.mktemp("dtypes")
    return {dtype: stored_as(root / dtype, PRESETS["tiny"], dtype) for dtype in DTYPES}


def test_the_table_is_complete() -> None:
    assert {*FLOATS, *PACKED} == set(STORED) and set(FLOATS) == {"BF16", "F16", "F32"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_compiled_programs(
    same: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """As the targets with compiled programs load them."""
    compile_nothing(monkeypatch, programs=())
    loaded = {}
    for stored, checkpoint in same.items():
        options = BuildOptions("aoti", "cpu", dtype=dtype, max_context=64, prefill_chunks=(8,))
        manifest = build(checkpoint, tmp_path / stored, options)
        loaded[stored] = loaded_weights(manifest, tmp_path / stored)
    expected = loaded.pop("F32")
    assert expected["lm_head.weight"].dtype == torch_dtype(dtype)
    for stored, weights in loaded.items():
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), (stored, name)
