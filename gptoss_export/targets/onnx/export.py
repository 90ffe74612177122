"""A traced decode program to model.onnx, with the names that onnxruntime-genai knows (model_files.py).

input_ids [B, S] int64                        S new tokens of each sequence
attention_mask [B, P + S] int64               1: a token, of P old ones and S new ones
past_key_values.<layer>.key, .value           [B, Hkv, P, D]
logits_from, logits_to [1] int64              the R new tokens whose logits are wanted; initializers: all unless given
logits [B, R, V]; present.<layer>.key, .value [B, Hkv, P + S, D]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch.fx.node import map_arg

from ...artifact.programs import kv_cache_names
from ...compiler.export import TracedProgram
from ...errors import BuildError, LoweringError, raise_all
from ...machine_limits import writes
from ...model.config import ModelConfig
from ...temporary_folder import TemporaryFolder
from ..base_compiler import CompileJob
from .converters import CONVERTERS, convert
from .graph import MICROSOFT, OPSET, OWN
from .model_files import (
    ATTENTION_MASK,
    DESCRIPTION,
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    LOGITS_TO,
    MODEL,
    cache_names,
    layer_cache_names,
)
from .writer import Writer


def check_operators(program: TracedProgram) -> None:
    """Raise LoweringError naming every operator of a program that has no converter."""
    missing = [
        f"{node.name}: {node.target}"
        for node in program.exported.graph.nodes
        if node.op == "call_function" and node.target not in CONVERTERS
    ]
    raise_all(LoweringError, f"program {program.name}: ops that ONNX has no converter for", missing)


def export_model(program: TracedProgram, job: CompileJob, writer: Writer) -> list[Path]:
    """Write model.onnx into the job's folder; returns the files below it that hold the model's weights.

    Raises BuildError where onnx refuses the model.
    """
    nodes = list(program.exported.graph.nodes)
    named = _program_inputs(job.config)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    values: dict[Any, Any] = {
        node: named.get(item.name, item.name) for node, item in zip(placeholders, program.signature.inputs, strict=True)
    }
    for node in nodes:
        if node.op == "call_function":
            args, kwargs = (map_arg(given, values.__getitem__) for given in (node.args, node.kwargs))
            values[node] = convert(writer, node.target, args, kwargs)
    model = _model(writer, job)
    with writes(job.folder / MODEL):
        onnx.save(model, job.folder / MODEL)
    _check(model, {name: (job.folder / name).stat().st_size for name in writer.files})
    return [Path(name) for name in sorted(writer.files)]


def _program_inputs(config: ModelConfig) -> dict[str, Any]:
    """What stands for the inputs of a program that the model names otherwise. Weights keep their names."""
    named: dict[str, Any] = {"tokens": INPUT_IDS}
    for layer, names in enumerate(kv_cache_names(config)):
        named |= zip(names, layer_cache_names(layer), strict=True)
    return named


def _model(writer: Writer, job: CompileJob) -> onnx.ModelProto:
    config, names = job.config, cache_names(job.config.num_hidden_layers)

    def cache(name: str, tokens: str) -> onnx.ValueInfoProto:
        shape: list[str | int] = ["batch", config.num_key_value_heads, tokens, config.head_dim]
        return helper.make_tensor_value_info(name, writer.dtype, shape)

    ids: dict[str, list[str | int]] = {
        INPUT_IDS: ["batch", "new"],
        ATTENTION_MASK: ["batch", "total"],
        LOGITS_FROM: [1],
        LOGITS_TO: [1],
    }
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in ids.items()]
    inputs += [cache(item.past, "past") for item in names]
    logits = helper.make_tensor_value_info(LOGITS, writer.dtype, ["batch", "wanted", config.vocab_size])
    outputs = [logits, *(cache(item.present, "present") for item in names)]
    all_tokens = {LOGITS_FROM: 0, LOGITS_TO: np.iinfo(np.int64).max}
    defaults = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in all_tokens.items()]
    graph = helper.make_graph(writer.g.nodes, "gpt-oss", inputs, outputs, defaults + writer.initializers)
    functions = writer.functions()
    opsets = {"": OPSET} | ({OWN: 1} if functions else {}) | ({MICROSOFT: 1} if writer.uses_contributed_ops else {})
    model = helper.make_model(
        graph,
        functions=functions,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=writer.ir_version,
        producer_name="gptoss-export",
    )
    helper.set_model_props(model, {DESCRIPTION: job.description})
    return model


def _check(model: onnx.ModelProto, files: Mapping[str, int]) -> None:
    """onnx's own check, with shape inference.

    The checker refuses files with several hard links, and a build hard-links the checkpoint's files. So it gets empty
    files of the same sizes.
    """
    with TemporaryFolder() as folder, writes(folder.path):
        scratch = folder.path
        for file, size in files.items():
            (scratch / file).parent.mkdir(exist_ok=True)
            with (scratch / file).open("wb") as stream:
                stream.truncate(size)
        onnx.save(model, scratch / MODEL)
        try:
            onnx.checker.check_model(str(scratch / MODEL), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise BuildError(f"{MODEL}: onnx refuses it: {error}") from None
