"""Threads in which requests are read: JSON, text to tokens, schemas. The event loop goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")

_COUNT = 4  # each holds the text and the tokens of a request


class WorkerThreads(Executor):
    """Threads that start with the first work. The end of the process does not wait for them, whatever they do: those of
    concurrent.futures would delay it by the seconds that a long text takes."""

    def __init__(self, count: int, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(count)]
        self._lock = threading.Lock()
        self._started = False
        self._busy = 0

    @property
    def busy(self) -> bool:
        """Whether a thread works."""
        return self._busy > 0

    def submit(self, function: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs) -> Future[Made]:
        """Have a thread call a function. Work that is cancelled before it begins is left out."""
        future: Future[Made] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                made = function(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(made)

        with self._lock:
            if not self._started:
                self._started = True
                for thread in self._threads:
                    thread.start()
        self._work.put(work)
        return future

    def _run(self) -> None:
        while True:
            work = self._work.get()
            with self._lock:
                self._busy += 1
            work()
            del work  # it holds a request, which must not stay until the next one comes
            with self._lock:
                self._busy -= 1


READING = WorkerThreads(_COUNT, "gptoss-export reading")
