"""The process group that the programs' collectives run in: gloo's on CPUs, NCCL's on GPUs. Imports torch: c10d is made
by torch's Python alone."""

from __future__ import annotations

import threading
from datetime import timedelta

import torch
from torch import distributed

from ..compat.process_group import gloo_group, is_registered, nccl_group, register, unregister
from ..cuda.gpu import current_gpu
from ..errors import RunError
from ..model.places import PATIENCE
from ..model.ranks import GROUP
from .exchange import Exchange, NoExchange

_PAGES = "pages"
_START = timedelta(seconds=120)  # in which all ranks are there: they import torch first


def check_no_other_group() -> None:
    """Raise RunError where the process has a runner of several ranks: compiled code knows one process group."""
    if is_registered(GROUP):
        raise RunError(
            "this process has loaded an artifact of several ranks already; drop its runner before, or load the other "
            "one in a process of its own"
        )


class TorchGroup:
    """This process's membership.

    port     of the store of rank 0 on this host; None: this is rank 0, whose `port` then says it
    through  a file that GPUs send through (`Exchange`); None: they reach each other's memory
    """

    def __init__(self, rank: int, ranks: int, device: str, port: int | None, through: int | None) -> None:
        self._store = distributed.TCPStore(
            "127.0.0.1", port or 0, is_master=port is None, timeout=_START, wait_for_workers=False
        )
        self.port = self._store.port
        self._rank, self._ranks, self._device, self._through = rank, ranks, device, through
        self._group: distributed.ProcessGroup | None = None
        self._has_left = False
        self._lock = threading.Lock()  # a rank may fail, and the membership end, in the middle of `join`
        self._exchange: Exchange | NoExchange = NoExchange(rank, ranks)

    def join(self) -> None:
        """Become a member. Waits for all ranks. Raises RunError where memory cannot be shared, or after `leave`."""
        make = gloo_group if self._device == "cpu" else nccl_group
        group = make(self._store, self._rank, self._ranks, timedelta(seconds=PATIENCE))
        with self._lock:
            if not self._has_left:
                register(GROUP, group)
                self._group = group
        if self._group is None:
            self._end(group)
            raise RunError("the ranks have ended in the meantime")
        if (gpu := current_gpu()) is not None and self._device != "cpu":
            self._exchange = Exchange(self._store, self._rank, self._ranks, gpu, self._through)

    @property
    def places(self) -> tuple[int, ...]:
        """What this rank's programs know of the ranks (model/places.py), after `join`."""
        return self._exchange.places

    def missed(self) -> bool:
        """Whether a rank did not answer in a sum. No result means anything since."""
        return self._exchange.missed()

    def settle(self) -> None:
        """Wait until the device has done everything."""
        if self._device != "cpu":
            torch.cuda.synchronize()

    def announce(self, pages: int) -> None:
        """On rank 0: the pages of the KV cache that all ranks have room for."""
        self._store.set(_PAGES, str(pages))

    def announced_pages(self) -> int:
        """On the other ranks. Waits for rank 0."""
        return int(self._store.get(_PAGES))

    def leave(self, in_background: bool = False) -> None:
        """End the membership, and the collectives that wait for ranks which are gone; once.

        in_background  return at once, though the device may work on for as long as a rank is waited for
        """
        with self._lock:
            group, has_left = self._group, self._has_left
            self._has_left = True
        if group is None or has_left:
            return
        unregister(GROUP)
        if in_background:
            threading.Thread(target=self._end, args=(group,)).start()  # which the end of the process waits for
        else:
            self._end(group)

    def _end(self, group: distributed.ProcessGroup) -> None:
        if self._device != "cpu":
            group.abort()
