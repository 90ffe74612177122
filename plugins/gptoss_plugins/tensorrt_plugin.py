"""A plugin inside of a TensorRT engine: quick-deployable, ahead of time (`tensorrt.plugin`: register, aot_impl).

TensorRT asks two functions while it builds: for the dtypes and shapes of the outputs, which of them are aliases of
inputs; and for the kernel, as PTX with its launch. Both answers come from the plugin (plugin.py), and are
constants, since shapes are static. The engine then holds the kernel: running it needs neither Python nor Triton.

Bytes (packed MXFP4) are INT8 to TensorRT, which has UINT8 for casts only; the kernel reads the same memory.

Limits: needs the full TensorRT, 11 or later, for whose builder no machine with PyPI alone has the libraries. What
of this has run, and what has not, is in docs/targets.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from .plugin import Plugin

NAMESPACE = "gptoss"
_DTYPES = {
    torch.float32: "FLOAT", torch.bfloat16: "BF16", torch.float16: "HALF",
    torch.int64: "INT64", torch.int32: "INT32", torch.uint8: "INT8", torch.bool: "BOOL",
}  # fmt: skip


def add_plugin(trt: Any, network: Any, plugin: Plugin, inputs: Sequence[Any]) -> list[Any]:
    """Put a plugin into a network; tensors of the plugin's inputs in, tensors of its outputs back."""
    registered = register(trt, plugin)
    layer = network.add_plugin(registered(*inputs), aot=True)
    return [layer.get_output(index) for index in range(len(plugin.outputs))]


def register(trt: Any, plugin: Plugin) -> Any:
    """Make a plugin known to TensorRT, once; returns what makes an instance of it from its input tensors."""
    import importlib

    made = importlib.import_module(f"{trt.__name__}.plugin")
    identifier = f"{NAMESPACE}::{plugin.name.replace('-', '_')}"
    namespace, name = identifier.split("::")
    known = getattr(made.op, namespace, None)
    if known is None or not hasattr(known, name):
        made.register(identifier)(_describe(trt, made, plugin))
        made.aot_impl(identifier)(_implement(made, plugin))
    return getattr(getattr(made.op, namespace), name)


def _describe(trt: Any, made: Any, plugin: Plugin) -> Any:
    """The function that tells dtypes and shapes of the outputs."""

    def describe(*inputs: Any) -> Any:
        given = dict(zip(plugin.inputs, inputs, strict=True))
        results = []
        for name in plugin.outputs:
            dtype, shape = plugin.tensors[name]
            if name in given:
                results.append(given[name].aliased())
            else:
                results.append(made.from_shape_expr(shape or (1,), getattr(trt.DataType, _DTYPES[dtype])))
        return tuple(results)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=made.TensorDesc) for name in plugin.inputs]
    outputs = tuple[(made.TensorDesc,) * len(plugin.outputs)]
    describe.__signature__ = inspect.Signature(parameters, return_annotation=outputs)
    return describe


def _implement(made: Any, plugin: Plugin) -> Any:
    """The function that gives the kernel and its launch."""

    def implement(*_: Any) -> Any:
        x, y, z = plugin.grid
        launch = made.KernelLaunchParams(grid_x=x, grid_y=y, grid_z=z, block_x=plugin.threads, shared_mem=plugin.shared)
        return plugin.function, plugin.ptx, launch, made.SymIntExprs(0)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in (*plugin.inputs, "outputs", "tactic")]
    returned = tuple[str, str, made.KernelLaunchParams, made.SymIntExprs]
    implement.__signature__ = inspect.Signature(parameters, return_annotation=returned)
    return implement
