"""A plugin inside a TensorRT engine: quick-deployable, ahead of time (`tensorrt.plugin`: register, aot_impl).

TensorRT calls two functions while it builds an engine. One gives the dtypes and shapes of the outputs, and says which
of them are aliases of inputs. The other gives the kernel, as PTX with its launch. Both answers come from the `Plugin`
(plugin.py). They are constants, since shapes are static. The engine then holds the kernel, and running it needs
neither Python nor Triton.

Bytes (packed MXFP4) are INT8 for TensorRT, which has UINT8 for casts only. The kernel reads the same memory.

Limits: needs the full TensorRT, 11 or later. PyPI has no libraries with its builder. docs/targets.md says what of
this has run.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any

import torch

from .plugin import Plugin

NAMESPACE = "gptoss"
_DTYPES = {
    torch.float32: "FLOAT",
    torch.bfloat16: "BF16",
    torch.float16: "HALF",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.uint8: "INT8",
    torch.bool: "BOOL",
}


def add_plugin(trt: Any, network: Any, plugin: Plugin, inputs: Sequence[Any]) -> list[Any]:
    """Add a plugin to a network. `inputs` are the tensors of the plugin's inputs; returns those of its outputs."""
    registered = register(trt, plugin)
    layer = network.add_plugin(registered(*inputs), aot=True)
    return [layer.get_output(index) for index in range(len(plugin.outputs))]


def register(trt: Any, plugin: Plugin) -> Callable[..., Any]:
    """Register a plugin with TensorRT, unless it is registered. Returns what makes an instance from input tensors."""
    api = importlib.import_module(f"{trt.__name__}.plugin")
    name = plugin.name.replace("-", "_")
    registered = getattr(api.op, NAMESPACE, None)
    if registered is None or not hasattr(registered, name):
        identifier = f"{NAMESPACE}::{name}"
        api.register(identifier)(_output_function(trt, api, plugin))
        api.aot_impl(identifier)(_kernel_function(api, plugin))
    return getattr(getattr(api.op, NAMESPACE), name)


def _output_function(trt: Any, api: Any, plugin: Plugin) -> Callable[..., Any]:
    """The function that gives the dtypes and shapes of the outputs."""

    def outputs_of(*inputs: Any) -> tuple[Any, ...]:
        by_name = dict(zip(plugin.inputs, inputs, strict=True))
        results = []
        for name in plugin.outputs:
            dtype, shape = plugin.tensors[name]
            if name in by_name:
                results.append(by_name[name].aliased())
            else:
                results.append(api.from_shape_expr(shape or (1,), getattr(trt.DataType, _DTYPES[dtype])))
        return tuple(results)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=api.TensorDesc) for name in plugin.inputs]
    return _with_signature(outputs_of, parameters, GenericAlias(tuple, (api.TensorDesc,) * len(plugin.outputs)))


def _kernel_function(api: Any, plugin: Plugin) -> Callable[..., Any]:
    """The function that gives the kernel and its launch."""

    def kernel_of(*_: Any) -> tuple[Any, ...]:
        x, y, z = plugin.grid
        launch = api.KernelLaunchParams(grid_x=x, grid_y=y, grid_z=z, block_x=plugin.threads, shared_mem=plugin.shared)
        return plugin.function, plugin.ptx, launch, api.SymIntExprs(0)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in (*plugin.inputs, "outputs", "tactic")]
    return _with_signature(
        kernel_of, parameters, GenericAlias(tuple, (str, str, api.KernelLaunchParams, api.SymIntExprs))
    )


def _with_signature(function: Any, parameters: list[inspect.Parameter], returned: Any) -> Callable[..., Any]:
    """The function with the signature that TensorRT inspects."""
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)
    return function
