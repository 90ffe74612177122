"""The processes of the ranks other than 0: children of rank 0, or processes that torchrun has started."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import MachineError, UsageError

_ENOUGH = 60.0  # seconds in which torchrun's processes find each other
_CREDENTIALS = struct.Struct("iii")  # process, user, group


class RankProcess(ABC):
    """The process of a rank, and the socket to it."""

    def __init__(self, rank: int, pid: int, connected: socket.socket) -> None:
        self.rank, self.pid, self.socket = rank, pid, connected

    def give(self, descriptors: Sequence[int]) -> None:
        """Hand open files to the process. Raises OSError where it is gone."""
        socket.send_fds(self.socket, [b"\0"], descriptors)

    def is_stopped(self) -> bool:
        """Whether somebody has stopped the process (SIGSTOP)."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state in "Tt"

    @abstractmethod
    def how_it_ended(self) -> str:
        """How the process ended, whose socket was closed."""

    def kill(self) -> None:
        """End it now, whatever it does."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    @abstractmethod
    def wait(self, seconds: float) -> bool:
        """Wait for its end, so long at most; whether it has ended."""


class _Child(RankProcess):
    def __init__(self, rank: int, process: subprocess.Popen[bytes], connected: socket.socket) -> None:
        super().__init__(rank, process.pid, connected)
        self._process = process

    def how_it_ended(self) -> str:
        if not self.wait(2.0):
            return "closed its connection"
        code = self._process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class _Peer(RankProcess):
    """A process that somebody else has started."""

    def how_it_ended(self) -> str:
        return "ended" if self.wait(2.0) else "closed its connection"

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._exists() and time.monotonic() < end:
            time.sleep(0.02)
        return not self._exists()

    def _exists(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()


@dataclass(frozen=True)
class Torchrun:
    """What torchrun tells a process that it has started."""

    rank: int
    ranks: int
    address: bytes  # of the socket of rank 0, which needs no file


def torchrun(environment: Mapping[str, str] = os.environ) -> Torchrun | None:
    """Where this process is one of several that torchrun has started: which. Raises UsageError where they are on
    several hosts."""
    if "TORCHELASTIC_RUN_ID" not in environment or int(environment.get("WORLD_SIZE", "1")) == 1:
        return None
    ranks, here = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
    if ranks != here:
        raise UsageError(
            f"torchrun: found {ranks} processes on several hosts, {here} of them here; the ranks of an artifact need "
            "the memory of one host: use --nnodes 1, and a server on each host"
        )
    run = f"{environment['TORCHELASTIC_RUN_ID']}-{environment['MASTER_PORT']}"
    return Torchrun(int(environment["RANK"]), ranks, f"\0gptoss-export-{os.getuid()}-{run}".encode())


def start_children(ranks: int) -> list[RankProcess]:
    """Processes for ranks 1 to ranks - 1, each of which runs rank_worker.py."""
    found: list[RankProcess] = []
    try:
        for rank in range(1, ranks):
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-m", "gptoss_export.rank_worker", str(theirs.fileno())]
            with theirs:
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
            found.append(_Child(rank, process, ours))
    except BaseException:
        for started in found:
            started.kill()
        raise
    return found


@contextmanager
def killed_after_errors(processes: Sequence[RankProcess]) -> Iterator[None]:
    """An error in this context ends the processes."""
    try:
        yield
    except BaseException:
        for process in processes:
            process.kill()
        raise


def accept_peers(given: Torchrun) -> list[RankProcess]:
    """The processes that torchrun has started for the other ranks, when they have connected. Raises MachineError where
    one does not."""
    found: dict[int, RankProcess] = {}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(given.address)
        listening.listen(given.ranks)
        end = time.monotonic() + _ENOUGH
        while len(found) < given.ranks - 1:
            listening.settimeout(max(0.01, end - time.monotonic()))
            try:
                connected, _ = listening.accept()
            except TimeoutError:
                missing = sorted(set(range(1, given.ranks)) - found.keys())
                raise MachineError(f"torchrun: ranks {missing} did not connect in {_ENOUGH:g} s") from None
            credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, user, _ = _CREDENTIALS.unpack(credentials)
            if user != os.getuid():
                connected.close()
                continue
            connected.settimeout(None)
            rank = int.from_bytes(connected.recv(1), "little")
            found[rank] = _Peer(rank, pid, connected)
    return [found[rank] for rank in sorted(found)]


def connect_to_rank_0(given: Torchrun) -> socket.socket:
    """The socket to rank 0 of torchrun's processes. Raises MachineError where it does not listen."""
    end = time.monotonic() + _ENOUGH
    while True:
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.connect(given.address)
            connected.sendall(bytes([given.rank]))
            return connected
        except ConnectionRefusedError:
            connected.close()
            if time.monotonic() > end:
                raise MachineError(f"torchrun: rank 0 did not load the artifact in {_ENOUGH:g} s") from None
            time.sleep(0.05)
