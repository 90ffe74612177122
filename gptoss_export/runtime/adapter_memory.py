"""The LoRA adapters of a loaded artifact on the device: the factors of all adapter slots, and the table that says which
adapter each sequence uses (model/adapter_factors.py)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from ..artifact.manifest import Manifest
from ..artifact.programs import adapter_inputs
from ..host_memory import HostBytes
from ..model.adapter_factors import ADAPTER_TABLE, NO_ADAPTER
from .tensors import Tensor, Tensors


@dataclass(eq=False)
class LoadedAdapter:
    """An adapter in an adapter slot.

    key     different for each adapter that was ever loaded, also under the same name: prefixes of the KV cache have it
    users   requests of an engine that need it
    loaded  False once it was unloaded or replaced
    """

    name: str
    slot: int
    key: bytes
    users: int = 0
    loaded: bool = True


class AdapterMemory:
    """The tensors of an artifact with adapter slots. bound: by the names of the programs' inputs."""

    def __init__(self, manifest: Manifest, tensors: Tensors) -> None:
        self._tensors = tensors
        with tensors.working():
            self.bound: dict[str, Tensor] = {
                item.name: tensors.zeros(item.sizes(0), item.dtype)
                for item in adapter_inputs(manifest.model, manifest.sizes, manifest.dtype)
            }
            for slot in range(manifest.sizes.max_batch):
                self.choose(slot, None)

    def choose(self, slot: int, adapter: LoadedAdapter | None) -> None:
        """What the sequence of a slot is computed with, from the next call on."""
        number = NO_ADAPTER if adapter is None else adapter.slot
        with self._tensors.working():
            self._tensors.write(self.bound[ADAPTER_TABLE][slot : slot + 1], array("q", [number]))

    def fill(self, adapter_slot: int, factors: Iterable[tuple[str, memoryview]]) -> None:
        """Write the factors of an adapter slot, each by its name and in the dtype of the programs; those that are not
        given become zeros. Other slots are left alone: sequences that use them may run meanwhile."""
        left = self.bound.keys() - {ADAPTER_TABLE}
        with self._tensors.working():
            fill = self._tensors.filler()
            for name, numbers in factors:
                fill([(self.bound[name][adapter_slot], HostBytes(numbers))])
                left = left - {name}
            for name in left:
                tensor = self.bound[name][adapter_slot]
                fill([(tensor, HostBytes(memoryview(bytes(tensor.nbytes))))])
