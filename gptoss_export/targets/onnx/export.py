"""A traced decode program to model.onnx, with the names that onnxruntime-genai knows.

    input_ids [B, S] int64, attention_mask [B, P + S] int64                 S new tokens behind P old ones
    past_key_values.<layer>.key and .value [B, Hkv, P, D]
    logits [B, R, V], present.<layer>.key and .value
    logits_from, logits_to [1] int64: the R new tokens whose logits are wanted, all where both are left out; initializers

A cast that is the same at every call is folded by the runtime when it loads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch.fx.node import map_arg

from ...errors import BuildError, LoweringError, raise_all
from ...compiler.export import Program
from ..target import Plan
from .compile import LOGITS_FROM, LOGITS_TO, MODEL, facts
from .converters import CONVERTERS
from .graph import MICROSOFT, OPSET, OWN
from .writer import Cache, Writer


def export_model(program: Program, plan: Plan, kind: type[Writer]) -> list[Path]:
    """Write model.onnx into the plan's folder; returns the files, below it, that hold its weights.

    Raises LoweringError naming every op without a converter, BuildError where onnx refuses the model.
    """
    nodes = list(program.exported.graph.nodes)
    missing = [f"{node.name}: {node.target}" for node in nodes if node.op == "call_function" and node.target not in CONVERTERS]
    raise_all(LoweringError, f"program {program.name}: ops that ONNX has no converter for", missing)
    writer = kind(plan)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    values: dict[Any, Any] = {
        node: _input(item.name, item.role) for node, item in zip(placeholders, program.inputs, strict=True)
    }
    for node in nodes:
        if node.op == "call_function":
            values[node] = CONVERTERS[node.target](writer, *map_arg(node.args, values.__getitem__))
    _save(writer, plan)
    return [Path(name) for name in sorted(writer.files)]


def _input(name: str, role: str) -> Any:
    if role == "cache":
        half, layer = name.split("_cache.")
        kind = {"k": "key", "v": "value"}[half]
        return Cache(f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}")
    return "input_ids" if name == "tokens" else name


def _save(writer: Writer, plan: Plan) -> None:
    config, folder = plan.config, plan.folder
    wanted = {LOGITS_FROM: 0, LOGITS_TO: np.iinfo(np.int64).max}
    ids = [("input_ids", ["batch", "new"]), ("attention_mask", ["batch", "total"]), *((name, [1]) for name in wanted)]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in ids]
    outputs = [helper.make_tensor_value_info("logits", writer.dtype, ["batch", "wanted", config.vocab_size])]
    for layer in range(config.num_hidden_layers):
        for kind in "key", "value":
            shape = ["batch", config.num_key_value_heads, "past", config.head_dim]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{kind}", writer.dtype, shape))
            shape = [*shape[:2], "present", shape[3]]
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", writer.dtype, shape))
    everything = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in wanted.items()]
    graph = helper.make_graph(writer.g.nodes, "gpt-oss", inputs, outputs, everything + writer.initializers)
    functions = writer.functions()
    opsets = [("", OPSET), *([(OWN, 1)] if functions else []), *([(MICROSOFT, 1)] if writer.contributed else [])]
    model = helper.make_model(
        graph, functions=functions, opset_imports=[helper.make_opsetid(*item) for item in opsets],
        ir_version=writer.ir_version, producer_name="gptoss-export",
    )  # fmt: skip
    helper.set_model_props(model, facts(plan.shapes.max_context, plan.arch))
    onnx.save(model, folder / MODEL)
    _check(model, {name: (folder / name).stat().st_size for name in writer.files})


def _check(model: onnx.ModelProto, files: Mapping[str, int]) -> None:
    """onnx's own check, with shape inference. It refuses files with several hard links, which a build makes of a
    checkpoint's: so it sees empty files of their sizes."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for file, size in files.items():
            (scratch / file).parent.mkdir(exist_ok=True)
            with (scratch / file).open("wb") as stream:
                stream.truncate(size)
        onnx.save(model, scratch / MODEL)
        try:
            onnx.checker.check_model(str(scratch / MODEL), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise BuildError(f"{MODEL}: onnx refuses it: {error}") from None
