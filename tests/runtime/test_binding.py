"""Which buffers programs are bound to: data of their own, caches and weights shared. And how weights are put
together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artifacts import loaded_weights
from gptoss_export.artifact.calls import Role
from gptoss_export.artifact.manifest import Manifest, Part, WeightSpec, load_manifest
from gptoss_export.artifact.programs import model_programs
from gptoss_export.errors import ArtifactError
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.runtime.page_memory import allocate_pages
from gptoss_export.runtime.program_executor import BoundProgram, bind_programs
from gptoss_export.runtime.weights import load_weights
from gptoss_export.runtime.with_torch.tensors import TorchTensors

CPU = TorchTensors(torch.device("cpu"))


@pytest.fixture
def manifest(uncompiled: Path) -> Manifest:
    return load_manifest(uncompiled)


@pytest.fixture
def weights(manifest: Manifest) -> dict[str, torch.Tensor]:
    """Weights of the right shapes and dtypes."""
    return {name: torch.zeros(spec.shape, dtype=torch_dtype(spec.dtype)) for name, spec in manifest.weights.items()}


def bind(manifest: Manifest, weights: dict[str, torch.Tensor]) -> dict[str, BoundProgram]:
    programs: dict[str, Any] = dict.fromkeys(manifest.programs, lambda inputs: [])
    memory = allocate_pages(manifest, CPU, None)
    return bind_programs(manifest, Path("artifact"), CPU, {**weights, **memory.bound}, programs)


def test_caches_and_weights_are_shared_and_data_is_not(manifest: Manifest, weights: dict[str, torch.Tensor]) -> None:
    bound = bind(manifest, weights)
    assert list(bound) == [program.name for program in model_programs(manifest.sizes)]
    for name, signature in ((name, manifest.programs[name]) for name in bound):
        assert list(bound[name].inputs) == [item.name for item in signature.inputs]
        for item in signature.inputs:
            tensor = bound[name].inputs[item.name]
            assert (tuple(tensor.shape), tensor.dtype) == (item.sizes(len(tensor)), torch_dtype(item.dtype))
            if item.role == Role.WEIGHT:
                assert tensor is weights[item.name]
            elif item.role in (Role.CACHE, Role.TABLE):
                assert tensor is bound["decode_3"].inputs[item.name]
    assert bound["prefill_16"].inputs["slots"] is not bound["prefill_64"].inputs["slots"]


def test_tables_are_aligned(manifest: Manifest, weights: dict[str, torch.Tensor]) -> None:
    """Compiled CUDA code copies what is not, at every call. Here a table's bytes are no multiple of 16."""
    inputs = bind(manifest, weights)["decode_3"].inputs
    tables = [inputs[item.name] for item in manifest.programs["decode_3"].inputs if item.role == Role.TABLE]
    assert len(tables) == 2 and tables[0].nbytes % 16
    assert not [table for table in tables if table.data_ptr() % 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "decode_1: weight lm_head.weight is not in the manifest"),
        (
            lambda w: w.update({"lm_head.weight": torch.zeros(511, 96)}),
            r"lm_head.weight is float32 \[511, 96\], expected float32 \[512, 96\]",
        ),
        (lambda w: w.update({"lm_head.weight": torch.zeros(512, 96).double()}), "lm_head.weight is float64"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    manifest: Manifest, weights: dict[str, torch.Tensor], change: Any, message: str
) -> None:
    change(weights)
    with pytest.raises(ArtifactError, match=message):
        bind(manifest, weights)


def with_weight(manifest: Manifest, shape: tuple[int, ...], dtype: str, tensors: list[str]) -> Manifest:
    """A manifest of one weight, which is made of tensors of one file."""
    weight = WeightSpec(shape, dtype, tuple(Part("x.safetensors", name) for name in tensors))
    return dataclasses.replace(manifest, weights={"w": weight})


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, torch.Tensor]:
    """The tensors of x.safetensors in the test's folder."""
    tensors = {name: torch.rand(rows, 4) for name, rows in (("a", 3), ("b", 2), ("c", 1))}
    save_file(tensors, tmp_path / "x.safetensors")
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_follow_each_other(
    manifest: Manifest, parts: dict[str, torch.Tensor], tmp_path: Path, dtype: str
) -> None:
    loaded = loaded_weights(with_weight(manifest, (6, 4), dtype, ["b", "a", "c"]), tmp_path)["w"]
    assert torch.equal(loaded, torch.cat((parts["b"], parts["a"], parts["c"])).to(torch_dtype(dtype)))


def test_one_part_of_the_wanted_dtype_is_used_as_it_is(
    manifest: Manifest, parts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert torch.equal(loaded_weights(with_weight(manifest, (3, 4), "float32", ["a"]), tmp_path)["w"], parts["a"])


@pytest.mark.parametrize(
    ("shape", "tensors", "message"),
    [
        ((5, 4), ["a", "b", "c"], r"w: stored shape \[6, 4\], expected \[5, 4\]"),
        ((6, 5), ["a", "b", "c"], r"w: stored shape \[6, 4\], expected \[6, 5\]"),
        ((3, 4), ["ghost"], "w: tensor ghost missing from x.safetensors"),
    ],
)
def test_stored_tensors_that_are_not_the_manifests(
    manifest: Manifest,
    parts: dict[str, torch.Tensor],
    tmp_path: Path,
    shape: tuple[int, ...],
    tensors: list[str],
    message: str,
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load_weights(with_weight(manifest, shape, "float32", tensors), tmp_path, CPU)


def test_parts_of_other_widths(manifest: Manifest, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(2, 5)}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match=r"w: stored shape \[5, 4\], expected \[5, 4\]"):
        load_weights(with_weight(manifest, (5, 4), "float32", ["a", "b"]), tmp_path, CPU)
