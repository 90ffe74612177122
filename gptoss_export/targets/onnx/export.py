"""A traced decode program to model.onnx, with the names that onnxruntime-genai knows.

    input_ids [B, S] int64, attention_mask [B, P + S] int64                 S new tokens behind P old ones
    past_key_values.<layer>.key and .value [B, Hkv, P, D] float32
    logits [B, S, V] float32, present.<layer>.key and .value

Weights are external data: the safetensors files of the artifact, by offset. They keep the dtype they are stored
in; casts to float32 are folded by the runtime when it loads.

Own nodes, gptoss::SinkAttention and gptoss::Mxfp4Experts, have bodies of standard operators (functions.py). For arch
`portable` both stay; otherwise attention is onnxruntime's GroupQueryAttention, which writes the cache in place when past and
present are bound to one buffer of full length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from torch.fx.node import map_arg

from ...errors import BuildError, LoweringError, raise_all
from ...export import Program
from ..target import Plan
from . import MODEL, PORTABLE, facts
from .converters import CONVERTERS, Cache
from .functions import mxfp4_experts, sink_attention
from .graph import MICROSOFT, OPSET, OWN, Nodes, Stored

_IR_VERSION = 10  # that of opset 21


class Export:
    """What converters write to: the nodes so far, and how weights, attention and experts are written."""

    def __init__(self, plan: Plan) -> None:
        self.config, self.max_context, self.portable = plan.config, plan.shapes.max_context, plan.arch == PORTABLE
        self.g = Nodes()
        self.batch = self.g.size("input_ids", 0)
        self.initializers: list[onnx.TensorProto] = []
        self._weights, self._files = plan.weights, Stored(plan.folder)
        self.files = sorted({part.file for weight in plan.weights.values() for part in weight.parts})
        self._stored: dict[str, str] = {}
        self._cast: dict[str, str] = {}
        if not self.portable:
            ones = self.g.reduce("ReduceSum", "attention_mask", 1)
            self._last = self.g.cast(self.g.add("Sub", ones, self.g.constant(1)), TensorProto.INT32)
            self._total = self.g.cast(self.g.add("Squeeze", self.g.size("attention_mask", 1)), TensorProto.INT32)

    def stored(self, name: str) -> str:
        """A weight as it is stored; one that is made of several tensors is put together by the runtime."""
        if name not in self._stored:
            parts = self._weights[name].parts
            labels = [name if len(parts) == 1 else f"{name}.{index}" for index in range(len(parts))]
            self.initializers += [
                self._files.initializer(label, part.file, part.tensor) for label, part in zip(labels, parts, strict=True)
            ]
            self._stored[name] = labels[0] if len(parts) == 1 else self.g.add("Concat", *labels, axis=0)
        return self._stored[name]

    def weight(self, name: str) -> str:
        """A weight in float32."""
        if name not in self._cast:
            self._cast[name] = self.g.cast(self.stored(name), TensorProto.FLOAT)
        return self._cast[name]

    def attention(
        self, query: str, key: str, value: str, k_cache: Cache, v_cache: Cache, cos: str, sin: str, sinks: str,
        window: int, scale: float,
    ) -> str:  # fmt: skip
        """query [B, S, Hq D], key and value [B, S, Hkv D] to [B, S, Hq D]; RoPE and caches included."""
        caches = k_cache.past, v_cache.past
        outputs = [f"{k_cache.present}.out", k_cache.present, v_cache.present]
        if self.portable:
            self.g.add(
                "SinkAttention", query, key, value, *caches, cos, sin, sinks, "attention_mask", outputs=outputs,
                domain=OWN, window=window or -1, scale=scale,
            )  # fmt: skip
        else:
            self.g.add(
                "GroupQueryAttention", query, key, value, *caches, self._last, self._total, cos, sin, "", "", sinks,
                outputs=outputs, domain=MICROSOFT, num_heads=self.config.num_attention_heads, scale=scale, do_rotary=1,
                kv_num_heads=self.config.num_key_value_heads, local_window_size=window or -1,
            )  # fmt: skip
        return outputs[0]

    def experts(self, x: str, weights: str, indices: str, packed: Sequence[str], alpha: float, limit: float) -> str:
        """x [T, H], weights and indices [T, K]; `packed` as stored: blocks, scales and bias of both matrices."""
        return self.g.add("Mxfp4Experts", x, weights, indices, *packed, domain=OWN, alpha=alpha, limit=limit)


def export_model(program: Program, plan: Plan) -> None:
    """Write model.onnx into the plan's folder. Raises LoweringError naming every op without a converter, BuildError where onnx refuses."""
    export = Export(plan)
    nodes = list(program.exported.graph.nodes)
    missing = [f"{node.name}: {node.target}" for node in nodes if node.op == "call_function" and node.target not in CONVERTERS]
    raise_all(LoweringError, f"program {program.name}: ops that ONNX has no converter for", missing)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    values: dict[Any, Any] = {
        node: _input(item.name, item.role) for node, item in zip(placeholders, program.inputs, strict=True)
    }
    for node in nodes:
        if node.op == "call_function":
            values[node] = CONVERTERS[node.target](export, *map_arg(node.args, values.__getitem__))
    _save(export, plan)


def _input(name: str, role: str) -> Any:
    if role == "cache":
        half, layer = name.split("_cache.")
        kind = {"k": "key", "v": "value"}[half]
        return Cache(f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}")
    return "input_ids" if name == "tokens" else name


def _save(export: Export, plan: Plan) -> None:
    config, folder = plan.config, plan.folder
    ids = [("input_ids", ["batch", "new"]), ("attention_mask", ["batch", "total"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in ids]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "new", config.vocab_size])]
    for layer in range(config.num_hidden_layers):
        for kind in "key", "value":
            shape = ["batch", config.num_key_value_heads, "past", config.head_dim]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{kind}", TensorProto.FLOAT, shape))
            shape = [*shape[:2], "present", shape[3]]
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(export.g.nodes, "gpt-oss", inputs, outputs, export.initializers)
    functions = [mxfp4_experts(), *([sink_attention()] if export.portable else [])]
    opsets = [("", OPSET), (OWN, 1), *([] if export.portable else [(MICROSOFT, 1)])]
    model = helper.make_model(
        graph, functions=functions, opset_imports=[helper.make_opsetid(*item) for item in opsets],
        ir_version=_IR_VERSION, producer_name="gptoss-export",
    )  # fmt: skip
    helper.set_model_props(model, facts(plan.shapes.max_context, plan.arch))
    onnx.save(model, folder / MODEL)
    _check(model, {name: (folder / name).stat().st_size for name in export.files})


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
