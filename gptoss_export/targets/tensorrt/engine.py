"""Builds engines.

The inputs of an engine are called in0, in1, ..., the outputs out0, out1, ... So one engine serves all segments of equal
key, whose tensors are bound to it by address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from ...errors import BuildError
from .converters import CONVERTERS
from .edition import Edition
from .layers import Layers, RefusedLayerError
from .partition import Launch, Part, Segment, first_argument, fixed_shape, owner
from .plugins import AddPlugin, Plugin


def missing_converters(segment: Segment) -> list[str]:
    """The nodes that have no converter, by name and op."""
    return [f"{node.name}: {node.target}" for node in segment.nodes if node.target not in CONVERTERS]


def build_segment(segment: Segment, edition: Edition, arch: str, on_this_gpu: bool) -> bytes:
    """The engine of a segment, all of whose nodes have converters.

    on_this_gpu: `arch` is that of this machine's GPU, and the engine is built for this very GPU.

    Raises BuildError naming the node that TensorRT refuses or gives another shape or dtype than torch, and with
    TensorRT's own message where it cannot build the network.
    """
    network = _Network(edition, f"segment {segment.key}")
    network.add_inputs(segment.inputs)
    network.add_nodes(segment.nodes)
    return network.build(segment.outputs, arch, on_this_gpu)


def build_whole(
    inputs: Sequence[Node],
    outputs: Sequence[Node],
    parts: Sequence[Part],
    plugins: Mapping[str, Plugin],
    add_plugin: AddPlugin,
    edition: Edition,
    arch: str,
    on_this_gpu: bool,
) -> tuple[bytes, list[Node]]:
    """Experimental: one engine of a whole program with its kernels inside. No such engine was ever executed.

    inputs, outputs  those of the program
    plugins          by the name of the launch

    Returns the engine and the inputs of the program that it takes, in order. A launch that writes memory which held
    data before gives back an alias of it, which later nodes read: this keeps the order of the program. Needs an edition
    that has plugins. Raises BuildError as `build_segment`.
    """
    used = {node for part in parts for node in (part.tensors.values() if isinstance(part, Launch) else part.inputs)}
    taken = [node for node in inputs if node in used]
    network = _Network(edition, "the program")
    network.add_inputs(taken)
    for part in parts:
        if isinstance(part, Segment):
            network.add_nodes(part.nodes)
        else:
            network.add_launch(part, plugins[part.name], add_plugin)
    network.add_nodes(_views(outputs))
    return network.build(outputs, arch, on_this_gpu), taken


def _views(outputs: Iterable[Node]) -> list[Node]:
    """The reshapes between the results and the nodes that own their memory, in order."""
    views: list[Node] = []
    for node in outputs:
        chain: list[Node] = []
        while node is not owner(node):
            chain.append(node)
            node = first_argument(node)
        views += reversed(chain)
    return views


class _Network:
    """A network that grows, and TensorRT's tensors of the nodes so far.

    label: what it is a network of, for errors.
    """

    def __init__(self, edition: Edition, label: str) -> None:
        trt = self._trt = edition.module
        self._label, self._log = label, _Log(trt)
        self._builder = trt.Builder(self._log.logger)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._layers = Layers(trt, self._network, self._log.text)
        self._tensors: dict[Node, Any] = {}
        self._has_aliases = False

    def add_inputs(self, nodes: Sequence[Node]) -> None:
        for index, node in enumerate(nodes):
            value = node.meta["val"]
            # UINT8 is for casts only. Kernels read the same bytes; `convert_node` refuses nodes that compute with them.
            dtype = torch.int8 if value.dtype == torch.uint8 else value.dtype
            try:
                kind = self._layers.dtype(dtype)
            except ValueError as error:
                raise BuildError(f"{self._label}: input {node.name} is {error}") from None
            self._tensors[node] = self._network.add_input(f"in{index}", kind, fixed_shape(node))

    def add_nodes(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node not in self._tensors:
                self._tensors[node] = convert_node(self._layers, node, self._tensors, self._log.text)

    def add_launch(self, launch: Launch, plugin: Plugin, add_plugin: AddPlugin) -> None:
        inputs = []
        for name in plugin.inputs:
            tensor = self._tensors.get(launch.tensors[name])
            # A parameter whose memory nobody has written, and which the kernel does not write, is not read either.
            inputs.append(self._layers.zeros(*plugin.tensors[name]) if tensor is None else tensor)
        outputs = add_plugin(self._trt, self._network, plugin, inputs)
        for name, tensor in zip(plugin.outputs, outputs, strict=True):
            self._tensors[launch.tensors[name]] = tensor
            self._has_aliases |= name in plugin.inputs

    def build(self, outputs: Sequence[Node], arch: str, on_this_gpu: bool) -> bytes:
        trt = self._trt
        for index, node in enumerate(outputs):
            # An input that is an output too, or one tensor as two outputs, needs a layer of its own.
            tensor = self._layers.output(self._network.add_identity(self._tensors[node]))
            tensor.name = f"out{index}"
            self._network.mark_output(tensor)
        config = self._builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # products of float32 are computed in float32
        if self._has_aliases:
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if hasattr(config, "set_compute_capability"):  # TensorRT for RTX builds for other GPUs too
            config.num_compute_capabilities = 1
            name = "CURRENT" if on_this_gpu else arch.replace("sm_", "SM")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
        engine = self._builder.build_serialized_network(self._network, config)
        if engine is None:
            raise BuildError(f"TensorRT cannot build {self._label} for {arch}: {self._log.text()}")
        return bytes(engine)


def convert_node(layers: Layers, node: Node, tensors: Mapping[Node, Any], reported: Callable[[], str]) -> Any:
    """The node's tensor in the network, or a tuple of them, of torch's shapes and dtypes.

    tensors   of the nodes before
    reported  returns what TensorRT has reported last

    Raises BuildError naming the node where its converter or TensorRT refuses it. Other errors are bugs of a converter.
    """
    packed = [read.name for read in node.all_input_nodes if getattr(read.meta["val"], "dtype", None) == torch.uint8]
    if packed:
        raise BuildError(
            f"{node.name} ({node.target}): reads {', '.join(packed)}, of uint8, which engines can only hand to a "
            "kernel: TensorRT would compute with the bytes as int8"
        )
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else (value,)
    arguments, options = map_arg((node.args, node.kwargs), tensors.__getitem__)
    try:
        result = CONVERTERS[node.target](layers, value, *arguments, **options)
        results = result if isinstance(result, tuple) else (result,)
        # TensorRT checks a layer when it is asked for the shape of its output.
        found = [(tuple(item.shape), item.dtype) for item in results]
        expected = [(tuple(item.shape), layers.dtype(item.dtype)) for item in values]
    except RefusedLayerError as error:
        raise BuildError(f"{node.name} ({node.target}): {error}") from error
    except (ValueError, RuntimeError, OverflowError) as error:
        # Converters raise ValueError and NotImplementedError (a RuntimeError), TensorRT's Python interface all three.
        reason = f"{type(error).__name__}: {error}"
        raise BuildError(f"{node.name} ({node.target}): no layers for it ({reason}) {reported()}") from error
    if found != expected:
        raise BuildError(f"{node.name} ({node.target}): TensorRT gives {found}, expected {expected} {reported()}")
    return result


class _Log:
    """The errors that TensorRT reports, kept for our own errors."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []
        self._lines = lines

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    lines.append(message)

        self.logger = Logger()

    def text(self) -> str:
        """The last three."""
        return "; ".join(self._lines[-3:])
