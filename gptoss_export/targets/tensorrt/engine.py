"""Builds engines. Inputs are called in0, in1, ..., outputs out0, out1, ...: one engine serves all segments of equal
key, whose tensors it is bound to by address."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from ...errors import BuildError
from .converters import CONVERTERS, Layers
from .partition import Launch, Segment, owner
from .edition import Flavour


def missing_converters(segment: Segment) -> list[str]:
    """The nodes that TensorRT has no layers for here, by name and op."""
    return [f"{node.name}: {node.target}" for node in segment.nodes if node.target not in CONVERTERS]


def build_segment(segment: Segment, flavour: Flavour, arch: str, on_this_gpu: bool) -> bytes:
    """The engine of a segment for `arch`; the segment has converters for all its nodes.

    Raises BuildError naming the node whose layers TensorRT refuses or gives another shape than torch, or what
    TensorRT said where it cannot build the whole.
    """
    network = _Network(flavour, f"segment {segment.key}")
    network.take(segment.inputs)
    network.convert(segment.nodes)
    return network.build(segment.outputs, arch, on_this_gpu)


def build_whole(
    inputs: Sequence[Node], outputs: Sequence[Node], steps: Sequence[Segment | Launch], plugins: Mapping[str, Any],
    add_plugin: Callable[..., list[Any]], flavour: Flavour, arch: str, on_this_gpu: bool,
) -> tuple[bytes, list[Node]]:  # fmt: skip
    """One engine of a program, its kernels inside; and which of the program's inputs it takes, in order.

    A launch that writes what was there before gives back an alias, which is what later nodes read: so their
    order is the program's. Needs a TensorRT that has plugins. Raises BuildError as `build_segment`.
    """
    used = {node for step in steps for node in (step.tensors.values() if isinstance(step, Launch) else step.inputs)}
    network = _Network(flavour, "the program")
    taken = [node for node in inputs if node in used]
    network.take(taken)
    for step in steps:
        if isinstance(step, Segment):
            network.convert(step.nodes)
        else:
            network.launch(step, plugins[step.name], add_plugin)
    network.convert(_views(outputs))
    return network.build(outputs, arch, on_this_gpu), taken


def _views(outputs: Iterable[Node]) -> list[Node]:
    """The reshapes between results and what owns their memory, in order."""
    chains = []
    for node in outputs:
        chain = []
        while node is not owner(node):
            chain.append(node)
            node = node.args[0]
        chains += reversed(chain)
    return chains


class _Network:
    """A network while it is made: the tensors of the nodes so far."""

    def __init__(self, flavour: Flavour, told: str) -> None:
        trt = self._trt = flavour.module
        self._told, self._log = told, _Log(trt)
        self._builder = trt.Builder(self._log.logger)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._layers = Layers(trt, self._network)
        self._known: dict[Node, Any] = {}
        self._aliases = False

    def take(self, inputs: Sequence[Node]) -> None:
        for index, node in enumerate(inputs):
            value = node.meta["val"]
            # UINT8 is for casts only. Kernels read the same bytes; `_convert` refuses who would compute with them.
            dtype = torch.int8 if value.dtype == torch.uint8 else value.dtype
            try:
                self._known[node] = self._network.add_input(f"in{index}", self._layers.dtype(dtype), tuple(value.shape))
            except LookupError:
                raise BuildError(f"{self._told}: input {node.name} is {value.dtype}, which TensorRT has no type for") from None

    def convert(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node not in self._known:
                self._known[node] = _convert(self._layers, node, self._known, self._log)

    def launch(self, launch: Launch, plugin: Any, add_plugin: Callable[..., list[Any]]) -> None:
        given = [self._known.get(launch.tensors[name]) for name in plugin.inputs]
        # What holds nothing yet and is not written is not read either, but a parameter all the same.
        given = [
            self._layers.zeros(*plugin.tensors[name]) if tensor is None else tensor
            for name, tensor in zip(plugin.inputs, given, strict=True)
        ]
        for name, tensor in zip(plugin.outputs, add_plugin(self._trt, self._network, plugin, given), strict=True):
            self._known[launch.tensors[name]] = tensor
            self._aliases |= name in plugin.inputs

    def build(self, outputs: Sequence[Node], arch: str, on_this_gpu: bool) -> bytes:
        trt = self._trt
        for index, node in enumerate(outputs):
            # An input that is an output too, or one tensor as two outputs, needs a layer of its own.
            tensor = self._network.add_identity(self._known[node]).get_output(0)
            tensor.name = f"out{index}"
            self._network.mark_output(tensor)
        config = self._builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
        if self._aliases:
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if hasattr(config, "set_compute_capability"):  # TensorRT for RTX builds for other GPUs too
            config.num_compute_capabilities = 1
            name = "CURRENT" if on_this_gpu else arch.replace("sm_", "SM")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
        engine = self._builder.build_serialized_network(self._network, config)
        if engine is None:
            raise BuildError(f"TensorRT cannot build {self._told} for {arch}: {self._log.text()}")
        return bytes(engine)


def _convert(layers: Layers, node: Node, known: dict[Node, Any], log: _Log) -> Any:
    packed = [given.name for given in node.all_input_nodes if getattr(given.meta["val"], "dtype", None) == torch.uint8]
    if packed:
        raise BuildError(f"{node.name} ({node.target}): reads {', '.join(packed)}, of uint8, which engines can only hand "
                         "to a kernel: TensorRT would take the bytes for int8")  # fmt: skip
    value = node.meta["val"]
    try:
        arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        result = CONVERTERS[node.target](layers, value, *arguments, **options)
        results = result if isinstance(result, tuple) else (result,)
        values = value if isinstance(value, list | tuple) else (value,)
        found = [(tuple(item.shape), item.dtype) for item in results]
        expected = [(tuple(item.shape), layers.dtype(item.dtype)) for item in values]
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError, OverflowError) as error:
        # A layer that TensorRT refuses is None, or its bindings raise; what was wrong with it is in the log.
        told = f"{type(error).__name__}: {error}"
        raise BuildError(f"{node.name} ({node.target}): no layers for it ({told}) {log.text()}") from error
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
