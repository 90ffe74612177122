"""Builds a segment into an engine. Inputs are called in0, in1, ..., outputs out0, out1, ...: one engine serves all
segments of equal key, whose tensors it is bound to by address."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...errors import BuildError
from .converters import CONVERTERS, Layers
from .cut import Segment
from .flavour import Flavour


def missing_converters(segment: Segment) -> list[str]:
    """The nodes that TensorRT has no layers for here, by name and op."""
    return [f"{node.name}: {node.target}" for node in segment.nodes if node.target not in CONVERTERS]


def build_engine(segment: Segment, flavour: Flavour, arch: str, on_this_gpu: bool) -> bytes:
    """The engine of a segment for `arch`; the segment has converters for all its nodes.

    Raises BuildError naming the node whose layers TensorRT refuses or gives another shape than torch, or what
    TensorRT said where it cannot build the whole.
    """
    trt = flavour.module
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layers = Layers(trt, network)
    known: dict[Node, Any] = {}
    for index, node in enumerate(segment.inputs):
        value = node.meta["val"]
        known[node] = network.add_input(f"in{index}", layers.dtype(value.dtype), tuple(value.shape))
    for node in segment.nodes:
        known[node] = _convert(layers, node, known, log)
    for index, node in enumerate(segment.outputs):
        # An input that is an output too, or one tensor as two outputs, needs a layer of its own.
        tensor = network.add_identity(known[node]).get_output(0)
        tensor.name = f"out{index}"
        network.mark_output(tensor)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    if hasattr(config, "set_compute_capability"):
        capabilities = trt.ComputeCapability
        name = "CURRENT" if on_this_gpu else arch.replace("sm_", "SM")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(capabilities, name), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(f"TensorRT cannot build segment {segment.key} for {arch}: {log.text()}")
    return bytes(engine)


def _convert(layers: Layers, node: Node, known: dict[Node, Any], log: _Log) -> Any:
    arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    value = node.meta["val"]
    try:
        result = CONVERTERS[node.target](layers, value, *arguments, **options)
        results = result if isinstance(result, tuple) else (result,)
        values = value if isinstance(value, list | tuple) else (value,)
        found = [(tuple(item.shape), item.dtype) for item in results]
    except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
        # A layer that TensorRT refuses is None; what was wrong with it is in the log.
        raise BuildError(f"{node.name} ({node.target}): no layers for it ({error}) {log.text()}") from error
    expected = [(tuple(item.shape), layers.dtype(item.dtype)) for item in values]
    if found != expected:
        raise BuildError(f"{node.name} ({node.target}): TensorRT gives {found}, expected {expected} {log.text()}")
    return result


class _Log:
    """What TensorRT complains of, kept for the error message."""

    def __init__(self, trt: Any) -> None:
        lines = self._lines = []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity, message) -> None:
                if severity <= trt.ILogger.ERROR:
                    lines.append(message)

        self.logger = Logger()

    def text(self) -> str:
        return "; ".join(self._lines[-3:])
