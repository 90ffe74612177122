"""The adapters that a runner has loaded, by their names. Any thread may load and unload: sequences go on meanwhile."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

from ..artifact.manifest import Manifest
from ..errors import RunError, UsageError
from ..values import shown
from .adapter_files import AdapterFile
from .adapter_memory import AdapterMemory, LoadedAdapter
from .arguments import sequence
from .slots import Slots


class LoadedAdapters:
    """memory: None where the artifact has no adapter slots."""

    def __init__(self, manifest: Manifest, memory: AdapterMemory | None, slots: Slots) -> None:
        self._manifest, self._memory, self._slots = manifest, memory, slots
        self._by_name: dict[str, LoadedAdapter] = {}
        self._numbers = itertools.count()
        self._changing = threading.Lock()  # one is loaded or unloaded at a time
        self._lock = threading.Lock()  # guards the dictionary and what adapters say

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded, in the order in which they were."""
        with self._lock:
            return tuple(self._by_name)

    def find(self, name: str | None) -> LoadedAdapter | None:
        """The adapter of a name; None for None. Raises UsageError where none of that name is loaded."""
        if name is None:
            return None
        self._with_slots(name)
        with self._lock:
            if not isinstance(name, str) or name not in self._by_name:
                loaded = ", ".join(map(repr, self._by_name)) or "none"
                raise UsageError(f"adapter {shown(name)}: is not loaded, expected one of those that are: {loaded}")
            return self._by_name[name]

    def find_all(self, names: Sequence[str | None]) -> list[LoadedAdapter | None]:
        """`find` for each of some requests."""
        return [self.find(name) for name in sequence("adapters", names, "names (or None)")]

    def acquire(self, adapter: LoadedAdapter | None) -> None:
        """A request needs an adapter until `release`. Raises RunError where it was unloaded meanwhile."""
        if adapter is not None:
            with self._lock:
                if not adapter.loaded:
                    raise RunError(f"adapter {adapter.name!r}: was unloaded; load it again")
                adapter.users += 1

    def release(self, adapter: LoadedAdapter | None) -> None:
        """A request needs it no more."""
        if adapter is not None:
            with self._lock:
                adapter.users -= 1

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in a folder, in place of one of the same name.

        Raises CheckpointError with all that is wrong with it, UsageError where there is no free adapter slot, RunError
        where one of that name is used.
        """
        memory = self._with_slots(name)
        if not isinstance(name, str) or not name:
            raise UsageError(f"adapter {shown(name)}: expected a name")
        with self._changing:
            self._slot_for(name)  # before a file is read that there is no room for
            file = AdapterFile(folder, self._manifest)
            with self._lock:
                replaced = self._by_name.get(name)
                slot = self._slot_for(name)
                if replaced is not None:
                    self._remove(replaced)
            memory.fill(slot, file.factors())
            with self._lock:
                self._by_name[name] = LoadedAdapter(name, slot, f"adapter {next(self._numbers)}".encode())

    def unload(self, name: str) -> None:
        """Forget an adapter. Raises UsageError where it is not loaded, RunError where it is used."""
        with self._changing:
            adapter = self.find(name)
            assert adapter is not None
            with self._lock:
                self._check_unused(adapter)
                self._remove(adapter)

    def _with_slots(self, name: object) -> AdapterMemory:
        if self._memory is None:
            raise UsageError(
                f"adapter {shown(name)}: the artifact takes no adapters; build it with --adapter-slots and "
                "--adapter-rank"
            )
        return self._memory

    def _slot_for(self, name: str) -> int:
        """The adapter slot for an adapter of a name: a free one, or its own."""
        found = self._by_name.get(name)
        if found is not None:
            self._check_unused(found)
            return found.slot
        taken = {adapter.slot for adapter in self._by_name.values()}
        count = self._manifest.sizes.adapter_slots
        free = next((slot for slot in range(count) if slot not in taken), None)
        if free is None:
            raise UsageError(
                f"adapter {name!r}: all {count} adapter slots are taken by {', '.join(map(repr, self._by_name))}; "
                "unload one, or build with more --adapter-slots"
            )
        return free

    def _check_unused(self, adapter: LoadedAdapter) -> None:
        if adapter.users:
            raise RunError(
                f"adapter {adapter.name!r}: {adapter.users} requests use it; let them end or cancel them before it is "
                "unloaded or replaced"
            )
        if held := self._slots.using(adapter):
            raise RunError(
                f"adapter {adapter.name!r}: the sequence of slot {held[0]} uses it; reset the slot before it is "
                "unloaded or replaced"
            )

    def _remove(self, adapter: LoadedAdapter) -> None:
        adapter.loaded = False
        del self._by_name[adapter.name]
