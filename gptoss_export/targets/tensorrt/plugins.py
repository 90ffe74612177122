"""Finds what makes plugins of kernel launches, by entry point.

A package names two things in the entry point group `gptoss_export.tensorrt`:

    maker   a class that makes the plugins of one arch (`PluginMaker`)
    add     a function that adds a plugin to a network of the full TensorRT (`AddPlugin`)

Nothing here imports such a package by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeAlias

import torch

from ...errors import LoweringError

GROUP = "gptoss_export.tensorrt"


class Plugin(Protocol):
    """A kernel with its constants, compiled for one arch.

    inputs   names of the tensors that it is given
    outputs  names of the tensors that it writes; one that is an input too is an alias of that input
    tensors  dtype and shape of each
    threads  of a block
    shared   bytes of shared memory of a block
    """

    @property
    def name(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def tensors(self) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]: ...
    @property
    def grid(self) -> tuple[int, int, int]: ...
    @property
    def threads(self) -> int: ...
    @property
    def shared(self) -> int: ...
    @property
    def ptx(self) -> str: ...
    @property
    def cubin(self) -> bytes: ...
    @property
    def arguments(self) -> tuple[str, ...]:
        """The inputs, then the outputs: the order of the kernel's parameters."""
        ...


class PluginMaker(Protocol):
    """Makes the plugins of one arch. Equal launches give the same plugin."""

    def make(
        self, kernel: Any, arguments: Mapping[str, Any], grid: Sequence[int], written_before: Collection[str], /
    ) -> Plugin:
        """The plugin of a launch. Tensors may be fakes. Raises ValueError for a kernel that cannot be a plugin.

        written_before: names of the tensors whose memory was written before the launch.
        """
        ...


# (TensorRT's module, network, plugin, tensors of the plugin's inputs) -> tensors of its outputs
AddPlugin: TypeAlias = Callable[[Any, Any, Plugin, Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class PluginSupport:
    """What an installed package offers. `maker` takes an arch."""

    maker: Callable[[str], PluginMaker]
    add: AddPlugin


def plugin_support() -> PluginSupport:
    """The plugin maker and adder of the installed package.

    Raises LoweringError where no package offers one of them, where two do, and where it cannot be imported.
    """
    return PluginSupport(_offered("maker"), _offered("add"))


def _offered(name: str) -> Any:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise LoweringError(f"no installed package offers {name} (entry point group {GROUP}); reinstall gptoss-export")
    if len(found) > 1:
        values = ", ".join(entry.value for entry in found)
        raise LoweringError(
            f"{name} of entry point group {GROUP}: offered twice ({values}); uninstall one of the packages"
        )
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise LoweringError(
            f"{found[0].value} cannot be imported: {error}; run: pip install 'gptoss-export[cuda]'"
        ) from error
