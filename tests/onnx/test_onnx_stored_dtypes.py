"""An ONNX model of a checkpoint whose floats are stored in any dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx_helpers import CUDA_CONFIG
from stored_dtypes import DTYPES, stored_as

from gptoss_export import BuildOptions, build, load
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.targets.onnx.options import Options


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model with its floats in each dtype."""
    root = tmp_path_factory.mktemp("dtypes")
    return {dtype: stored_as(root / dtype, PRESETS["tiny"], dtype) for dtype in DTYPES}


@pytest.mark.parametrize("portable", [False, True])
def test_onnx_for_a_cpu_computes_the_same(same: dict[str, Path], tmp_path: Path, portable: bool) -> None:
    found = {}
    for stored, checkpoint in same.items():
        options = BuildOptions(
            "onnx", "cpu", max_context=64, prefill_chunks=(16,), target_options=Options(portable=portable)
        )
        build(checkpoint, tmp_path / stored, options)
        generation = load(tmp_path / stored).generate(list(range(20)), 12, stop_tokens=())
        found[stored] = dataclasses.replace(generation, ttft_s=0.0, decode_tok_s=0.0)
    expected = found.pop("F32")
    assert len(set(expected.tokens)) > 1
    for stored, generation in found.items():
        assert generation == expected, stored


@pytest.mark.parametrize("stored", DTYPES)
def test_onnx_for_cuda_multiplies_what_it_computes_in(tmp_path: Path, stored: str) -> None:
    """onnxruntime's own ops take inputs of one type. Whatever the checkpoint holds becomes bfloat16 before them."""
    checkpoint = stored_as(tmp_path / "checkpoint", CUDA_CONFIG, stored)
    options = BuildOptions("onnx", "cuda", max_context=64, prefill_chunks=(16,))
    build(checkpoint, tmp_path / "artifact", options)
    graph = onnx.load(tmp_path / "artifact" / "model.onnx", load_external_data=False).graph
    initializers = {item.name: item.data_type for item in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}

    def type_of(name: str) -> int:
        if name in initializers:
            return initializers[name]
        node = made[name]
        if node.op_type == "Cast":
            return node.attribute[0].i
        (found,) = {type_of(part) for part in node.input}  # Concat
        return found

    def weights() -> Iterator[str]:
        for node in graph.node:
            if node.op_type == "Gemm":
                yield from node.input[1:]
            if node.op_type == "GroupQueryAttention":
                yield node.input[11]
            if node.op_type == "QMoE":
                yield from (node.input[4], node.input[7])

    found = list(weights())
    assert len(found) > 5 * CUDA_CONFIG.num_hidden_layers
    assert {type_of(name) for name in found} == {onnx.TensorProto.BFLOAT16}
