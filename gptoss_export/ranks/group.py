"""Rank 0's view of the other ranks: starts them, tells them the calls, and ends all of them when one fails.

A rank that ends closes its socket. A rank that hangs is noticed by the others, which wait in a sum for
PATIENCE at most, or because it reads no calls any more. Whatever happens first is followed by the end of
all ranks: the processes are killed, and a collective that rank 0 waits in is ended.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RunError
from ..model.places import PATIENCE
from .channel import Sender, shared_memory
from .control import Control
from .exchange import shared_file
from .following import LoadFacts, Place
from .processes import RankProcess
from .torch_group import TorchGroup

_GATHERING = 0.7  # seconds after the first sign of a failure in which its cause may show
_LOOKING = 1.0  # seconds between two looks at the processes while rank 0 waits for them
_MISSED = "a rank did not answer in a sum"
_ENDING = 5.0  # seconds that a rank has to end by itself


@dataclass(frozen=True)
class _End:
    """That a rank has ended or failed.

    cause   whether that explains the end of others
    waited  seconds since it began with the call that failed
    """

    rank: int
    text: str
    cause: bool
    waited: float = 0.0


class RankGroup:
    """The other ranks of an artifact. Raises RunError where they cannot be started."""

    def __init__(self, processes: Sequence[RankProcess], facts: LoadFacts, device: str) -> None:
        self._processes = processes
        self._controls = [Control(process.socket) for process in processes]
        self._ends: list[_End] = []
        self._changed = threading.Condition()
        self._ready: set[int] = set()
        self._pages: dict[int, int] = {}  # that a rank has room for
        self._importing = {process.rank for process in processes}
        self._reason = ""
        self._finish = weakref.finalize(self, _end_all, list(processes), self._controls)
        descriptors = [shared_memory(len(processes))]
        self._sender = Sender(descriptors[0], len(processes))
        if facts.through_host:
            descriptors.append(shared_file(1 + len(processes)))
        self._torch = TorchGroup(0, 1 + len(processes), device, None, descriptors[1] if facts.through_host else None)
        for process, control in zip(processes, self._controls, strict=True):
            place = Place(process.rank, 1 + len(processes), device, self._torch.port)
            with suppress(OSError):  # a process that has ended is noticed below
                process.give(descriptors)
                control.send(load=asdict(facts), place=asdict(place))
            watch = threading.Thread(target=_watch, args=(weakref.ref(self), process, control), daemon=True)
            watch.start()
        os.close(descriptors[0])
        threading.Thread(target=_look, args=(weakref.ref(self),), daemon=True).start()

    def join(self) -> None:
        """Become a member of the process group, as soon as all ranks have imported torch."""
        self._wait_until(lambda: not self._importing)
        weakref.finalize(self, self._torch.leave)
        with self.together():
            self._torch.join()

    @property
    def places(self) -> tuple[int, ...]:
        """What the programs of rank 0 know of the ranks (model/places.py), after `join`."""
        return self._torch.places

    def agreed_pages(self, pages: int) -> int:
        """How many pages all ranks have room for."""
        self._wait_until(lambda: len(self._pages) == len(self._processes))
        found = min(pages, *self._pages.values())
        self._torch.announce(found)
        return found

    def wait_until_ready(self) -> None:
        """Wait until all ranks have loaded the artifact. Raises the error of one that cannot."""
        self._wait_until(lambda: len(self._ready) == len(self._processes))

    def tell(self, message: bytes) -> None:
        self._check()
        self._sender.send(message, self._check)

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            with self.waiting():
                yield
        except Exception:
            raise
        except BaseException:  # Ctrl-C
            with self._changed:
                self._fail(_End(0, "was interrupted in the middle of a call", cause=True))
            raise

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
            self._check()
            if self._torch.missed():
                begin -= PATIENCE  # in which this rank may have done other things
                raise RunError(_MISSED)
        except Exception as error:
            waited = time.monotonic() - begin
            with self._changed:  # the reason of an error in a collective may be on its way
                self._changed.wait_for(lambda: self._reason, _GATHERING)
                if not self._reason:
                    self._fail(_End(0, str(error), not _of_another_rank(str(error)), waited))
                self._changed.wait_for(lambda: self._reason)  # which another thread may be gathering
            raise RunError(self._reason) from error

    def settle(self) -> None:
        with self.waiting():
            self._torch.settle()

    def _check(self) -> None:
        if self._reason:
            raise RunError(self._reason)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        stopped = 0.0
        with self._changed:
            while not self._changed.wait_for(lambda: self._reason or condition(), _LOOKING):
                found = [process for process in self._processes if process.is_stopped()]
                stopped = stopped + _LOOKING if found else 0.0
                if stopped >= PATIENCE:
                    self._fail(_End(found[0].rank, f"(process {found[0].pid}) was stopped for {PATIENCE:g} s", True))
        self._check()

    def heard(self, rank: int, message: dict[str, Any] | None, how_it_ended: str) -> None:
        """What a rank has said; None: it has ended."""
        with self._changed:
            if message is None and any(end.rank == rank for end in self._ends):
                pass  # it has said why
            elif message is None:
                self._fail(_End(rank, how_it_ended, cause=True))
            elif "error" in message:
                text = message["error"]
                self._fail(_End(rank, text, not _of_another_rank(text), message["waited"]))
            elif message.get("said") == "imported":
                self._importing.discard(rank)
            elif message.get("said") == "room":
                self._pages[rank] = message["pages"]
            elif message.get("said") == "ready":
                self._ready.add(rank)
            self._changed.notify_all()

    def _fail(self, end: _End) -> None:
        """One rank has failed. The first who notices waits for what else shows, then ends all."""
        self._ends.append(end)
        if len(self._ends) > 1:
            return
        self._changed.wait_for(lambda: any(found.cause for found in self._ends), _GATHERING)
        self._reason = self._explain()
        for process in self._processes:
            process.kill()
        self._torch.leave(in_background=True)
        self._changed.notify_all()

    def _explain(self) -> str:
        first = next((end for end in self._ends if end.cause), self._ends[0])
        silent = {process.rank for process in self._processes} - {end.rank for end in self._ends}
        stopped = {process.rank for process in self._processes if process.is_stopped()}
        silent = silent & stopped or silent
        if not first.cause and first.waited >= PATIENCE and silent:
            found = f"rank {', '.join(map(str, sorted(silent)))}", f"did not answer for {PATIENCE:g} s"
        else:
            found = f"rank {first.rank}", first.text
        return f"{found[0]} of {1 + len(self._processes)} {found[1]}; all ranks have ended: load the artifact again"

    @property
    def has_failed(self) -> bool:
        return bool(self._reason)

    def look(self, known: dict[int, tuple[int | None, float]]) -> None:
        """End all ranks where one has read no calls for too long.

        known  what each rank had read at earlier looks, and since when
        """
        now = time.monotonic()
        for process in self._processes:
            read = self._sender.read(process.rank - 1)
            before, since = known.get(process.rank, (None, now))
            since = since if read is not None and read == before else now
            known[process.rank] = read, since
            if now - since >= PATIENCE:
                with self._changed:
                    self._fail(_End(process.rank, f"did not answer for {PATIENCE:g} s", cause=True))


def _of_another_rank(text: str) -> bool:
    """Whether an error may say that another rank was not there. libtorch prints the reason of a program's error."""
    return any(part in text for part in ("gloo", "NCCL", "c10d", "Connection", "stderr says why", _MISSED))


def _look(group: weakref.ref[RankGroup]) -> None:
    """Look at the ranks now and then, until the group is dropped."""
    known: dict[int, tuple[int | None, float]] = {}
    while (found := group()) is not None and not found.has_failed:
        found.look(known)
        del found
        time.sleep(_LOOKING)


def _watch(group: weakref.ref[RankGroup], process: RankProcess, control: Control) -> None:
    """Hear what a rank says, until it ends or the group is dropped."""
    while True:
        message = control.receive()
        how = "" if message is not None else process.how_it_ended()
        if (found := group()) is None:
            return
        found.heard(process.rank, message, f"(process {process.pid}) {how}")
        del found
        if message is None:
            return


def _end_all(processes: Sequence[RankProcess], controls: Sequence[Control]) -> None:
    """The ranks end when their sockets are closed."""
    for control in controls:
        control.close()
    end = time.monotonic() + _ENDING
    for process in processes:
        if not process.wait(max(0.0, end - time.monotonic())):
            process.kill()
