"""Compiles the programs of a build side by side, each in a process of its own.

For targets whose programs are compiled one by one (`Compiler.compile_alone`). A worker process (compile_worker.py)
gets the settings of the build, then one program after the other: it traces, lowers and compiles it into a folder. The
programs share no cache of Inductor, since one that was written by several processes at once has lost code.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from .artifact.programs import Program
from .build_options import Settings
from .compat.inductor_cache import own_cache
from .compiler.export import trace
from .compiler.lower import lower
from .errors import BuildError
from .kernels.kernel import ConfigChooser
from .kernels.tuned_configs import TunedConfigs
from .model.config import ModelConfig
from .model.dtypes import torch_dtype
from .targets.base_compiler import Compiler

WORKER_MEMORY = 2 << 30  # bytes that a worker may need: 0.9 GB for a program of a 20b, and its C++ compiler


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know of the build. tuned: the tuned configs to look in."""

    settings: Settings
    tuned: tuple[TunedConfigs, ...]


@dataclass(frozen=True)
class ProgramTask:
    """A program to compile for an arch, into a folder that exists. purpose: what for, in messages."""

    program: Program
    config: ModelConfig
    arch: str
    purpose: str
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.program.name} for {self.purpose}"


# What a worker answers: the launch configs that were chosen, each with the number of its tuned configs, or an error.
Chosen = Mapping[str, int | None]


def compile_program(compiler: Compiler, given: WorkerSettings, task: ProgramTask) -> Chosen:
    """Trace, lower and compile one program. Raises BuildError or LoweringError."""
    settings = given.settings
    chooser = ConfigChooser(task.arch, given.tuned)
    with own_cache(f"{task.purpose}-{task.program.name}"), compiler.environment(settings.device, task.arch):
        device, dtype = compiler.trace_device(settings.device), torch_dtype(settings.dtype)
        traced = trace(task.program, task.config, settings.sizes, dtype, device)
        lowered = lower(traced, compiler.implementations(settings.device, chooser))
        compiler.compile_alone(lowered, settings.device, task.folder)
    return {call: None if configs is None else given.tuned.index(configs) for call, configs in chooser.chosen.items()}


def compile_side_by_side(
    given: WorkerSettings, tasks: Sequence[ProgramTask], jobs: int, report: Callable[[str], None]
) -> list[Chosen]:
    """Compile all tasks in `jobs` processes; the answers in their order. `report` is told how far it is.

    Raises the first error of a worker, after all of them were stopped.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(tasks)):
        waiting.put(index)
    answers: dict[int, Chosen] = {}
    errors: list[BaseException] = []
    changed = threading.Condition()
    running: dict[int, str] = {}

    def drive(worker: _Worker) -> None:
        try:
            worker.send(given)
            while not errors:
                index = waiting.get_nowait()
                with changed:
                    running[index] = tasks[index].label
                answer = worker.compile(tasks[index])
                with changed:
                    answers[index] = answer
                    del running[index]
                    changed.notify_all()
        except queue.Empty:
            pass
        except BaseException as error:  # handed to the thread that waits
            with changed:
                errors.append(error)
                changed.notify_all()

    with _workers(jobs) as workers:
        threads = [threading.Thread(target=drive, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        with changed:
            while len(answers) < len(tasks) and not errors:
                report(f"{len(answers)} of {len(tasks)} programs compiled; now {', '.join(sorted(running.values()))}")
                changed.wait(timeout=1)
    if errors:
        raise errors[0]
    return [answers[index] for index in range(len(tasks))]


def default_jobs(tasks: int) -> int:
    """As many processes as this machine's cores and memory allow, at most one for each task."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _available_memory()
    fitting = cores if memory is None else max(1, memory // WORKER_MEMORY)
    return max(1, min(tasks, cores, fitting))


def _available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


class _Worker:
    """A process that compiles, and the connection to it."""

    def __init__(self, jobs: int) -> None:
        ours, theirs = socket.socketpair()
        # OMP_NUM_THREADS stays: code for a CPU is made for as many threads as torch has when it is compiled.
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "gptoss_export.compile_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        self._connection = Connection(ours.detach())

    def send(self, given: WorkerSettings) -> None:
        """Raises BuildError where the worker is gone."""
        with self._reports_its_end("a process that compiles"):
            self._connection.send(given)

    def compile(self, task: ProgramTask) -> Chosen:
        """Raises what the worker's compilation raises, BuildError where the worker is gone."""
        with self._reports_its_end(f"the process that compiled {task.label}"):
            self._connection.send(task)
            answer: Chosen | BaseException = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()

    @contextmanager
    def _reports_its_end(self, who: str) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            raise BuildError(f"{who} {self._how_it_ended()}") from None

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code != -signal.SIGKILL:
            return f"ended with code {code}"
        return "was killed, perhaps for want of memory; give it more, or compile fewer at a time with --jobs"


@contextmanager
def _workers(count: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker(count))
        yield workers
    finally:
        for worker in workers:
            worker.stop()
