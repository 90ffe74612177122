"""Registers the plugins of the tiny model with the bindings of the full TensorRT, and asks them what TensorRT asks.

Prints the functions of the kernels as JSON. The variable LD_LIBRARY_PATH must name a folder that the bindings can be
linked to.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import tensorrt_bindings

tensorrt_bindings.__name__ = "tensorrt"  # the package of that name exports all of it
sys.modules["tensorrt"] = tensorrt_bindings

import tensorrt as trt  # noqa: E402
import tensorrt.plugin as api  # noqa: E402
from gptoss_plugins.tensorrt_plugin import register  # noqa: E402
from tensorrt_helpers import ARCH, plugins_of_the_model  # noqa: E402

from gptoss_export.targets.tensorrt.plugins import Plugin  # noqa: E402

TYPES = {
    "float32": "FLOAT",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "INT8",
    "float16": "HALF",
}


class Constants:
    """What the builder makes of numbers."""

    def constant(self, value: int) -> SimpleNamespace:
        return SimpleNamespace(value=value)


def check(plugin: Plugin) -> None:
    maker = register(trt, plugin)
    assert maker is register(trt, plugin)  # once
    name = plugin.name.replace("-", "_")
    definition = api._lib.QDP_REGISTRY[f"gptoss::{name}"]
    assert definition.input_tensor_names == list(plugin.inputs) and definition.num_outputs == len(plugin.outputs)
    instance = api._plugin_class._TemplateAOTPlugin(name, "gptoss", len(plugin.outputs))
    instance.init(definition.register_func, {}, [], definition.aot_impl_func, [], None)

    def kind(tensor: str) -> object:
        return getattr(trt.DataType, TYPES[str(plugin.tensors[tensor][0]).removeprefix("torch.")])

    ranks = [len(plugin.tensors[tensor][1]) for tensor in plugin.inputs]
    found = instance.get_output_data_types([kind(tensor) for tensor in plugin.inputs], ranks)
    assert list(found) == [kind(tensor) for tensor in plugin.outputs], plugin.name
    for index, tensor in enumerate(plugin.outputs):
        alias = plugin.inputs.index(tensor) if tensor in plugin.inputs else -1
        assert instance.aliased_map.get(index, -1) == alias, (plugin.name, tensor)
    function, ptx, launch, extra = definition.aot_impl_func(*[None] * len(plugin.inputs), (), 0)
    assert (function, ptx) == (plugin.function, plugin.ptx) and len(extra) == 0
    fields = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
    numbers = [getattr(launch, field)._int_expr.value for field in fields]
    assert numbers == [*plugin.grid, plugin.threads, 1, 1, plugin.shared], plugin.name


api._tensor.SymIntExpr._exprBuilder = Constants()
functions = set()
for plugin in plugins_of_the_model(ARCH):
    check(plugin)
    functions.add(plugin.function)
print(json.dumps(sorted(functions)))
