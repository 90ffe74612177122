"""Engine: any number of requests over the slots of one artifact. They join and leave between steps.

    with gptoss_export.Engine(gptoss_export.load("artifacts/20b")) as engine:
        first = engine.submit([1, 2, 3], max_new_tokens=20)
        second = engine.submit([4, 5], sampling=SamplingParams(temperature=0.8, seed=1))
        for token in first:
            print(token.id)
        print(second.result().tokens)

Requests beyond the artifact's slots, and beyond the memory of its KV cache, wait in the order in which they came. Long
prompts are prefilled chunk by chunk between decode steps (scheduler.py). A prompt that begins as one before shares its
pages and is computed from there on (page_tables.py). A request that fails ends alone, with its reason, and the engine
goes on.

Who drives it: `start`, or entering the engine as a context, starts a thread that takes a step as long as there is work.
Without a thread, whoever wants a token (`for`, `result`, `generate`) takes steps until it is there, or calls `step`.

Several threads and asyncio tasks may submit, read and cancel at the same time.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from ..errors import QueueFullError, RunError
from .checked_request import checked_mask, checked_requests
from .generation import Generation, Token
from .request_handle import RequestHandle
from .runner import Runner
from .running_sequence import Request, RunningSequence
from .sampling_params import SamplingParams
from .scheduler import Scheduler

MOST_WAITING = 4096  # requests without a slot that an engine keeps, unless told otherwise


@dataclass(frozen=True)
class EngineStats:
    """What an engine does now, and what it did so far.

    running, waiting          sequences with a slot and without one
    ended, tokens             requests that ended, and tokens that were generated
    set_back                  how often a sequence lost its pages to an older one, and was prefilled again
    reused_tokens             tokens of prompts that were found in the cache and not computed again
    pages, held_pages         of the KV cache, and those that sequences hold; 0 where the cache has no pages
    """

    running: int
    waiting: int
    ended: int
    tokens: int
    set_back: int
    reused_tokens: int
    pages: int
    held_pages: int


class Engine:
    """Serves requests with a loaded artifact. Until `close`, calls of its runner that need the slots raise RunError.

    most_waiting  requests that may wait for a slot; `submit` raises QueueFullError for more
    reuse         whether a prompt that begins as one before takes what the cache still knows of it. A runner of fixed
                  width reuses nothing

    Raises RunError where a call of the runner, or another engine, is under way.
    """

    def __init__(self, runner: Runner, most_waiting: int = MOST_WAITING, reuse: bool = True) -> None:
        self.runner = runner
        self._most_waiting, self._reuse = most_waiting, reuse
        runner.lend("an engine uses this runner; submit to the engine, or close it")
        self._take_back = weakref.finalize(self, runner.take_back)
        self._scheduler = Scheduler(runner.executor, runner.slots, serving=True, reuse=reuse)
        self._step_lock = threading.RLock()  # one step at a time; a callback may close the engine
        # What other threads have asked for, until the next step. Guards everything below.
        self._changed = threading.Condition()
        self._submitted: deque[RequestHandle] = deque()
        self._cancelled: list[RequestHandle] = []
        self._handles: dict[RunningSequence, RequestHandle] = {}
        self._sequences: dict[RequestHandle, RunningSequence] = {}
        self._ended = self._tokens = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    # Requests

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stop_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
        on_token: Callable[[Token], object] | None = None,
        allowed: Callable[[Sequence[int]], bytes] | None = None,
        ends: Callable[[Sequence[int]], bool] | None = None,
        adapter: str | None = None,
    ) -> RequestHandle:
        """Ask for the continuation of a prompt. Returns at once.

        on_token  is called with each token, by the thread that takes the steps. If it raises an error, the request ends
                  with that error
        allowed   gets the tokens of the answer so far and gives those that can be next, for structured output: a bit
                  for each token of the vocabulary, in little-endian words of 32. The sequence that it gets grows with
                  the answer; it is the same object in each call
        ends      gets the tokens of the answer so far, as `allowed` does, and says whether it ends there, for stop
                  strings

        The other arguments are those of `Runner.generate`. Raises RunError as it does, QueueFullError where too many
        requests wait, RunError after `close`.
        """
        params = None if sampling is None else [sampling]
        runner, adapters = self.runner, [self.runner.loaded_adapters.find(adapter)]
        (request,) = checked_requests(
            runner.manifest, runner.slots, [prompt], max_new_tokens, params, stop_tokens, keep_logits, adapters
        )
        vocabulary = runner.manifest.model.vocab_size
        request = replace(request, allowed=checked_mask(allowed, vocabulary), ends=ends)
        with self._changed:
            self._check_open()
            waiting = self._waiting()
            if waiting >= self._most_waiting:
                raise QueueFullError(f"{waiting} requests wait already, expected fewer than {self._most_waiting}")
            handle = self._handle(request, on_token)
            self._submitted.append(handle)
            self._changed.notify_all()
        return handle

    def cancel(self, handle: RequestHandle) -> None:
        """End a request before the next step. Its tokens so far stay; its `finish` is "cancelled"."""
        with self._changed:
            self._cancelled.append(handle)
            self._changed.notify_all()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        sampling: Sequence[SamplingParams] | None = None,
        stop_tokens: Sequence[int] | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """Continue any number of prompts; the results in their order. The arguments are those of
        `Runner.generate_batch`, and so are the errors. All are submitted, whatever `most_waiting` is. If one fails, its
        error is raised, and the others are cancelled."""
        runner = self.runner
        found = None if adapters is None else runner.loaded_adapters.find_all(adapters)
        handles = self.submit_all(
            checked_requests(
                runner.manifest, runner.slots, prompts, max_new_tokens, sampling, stop_tokens, adapters=found
            )
        )
        try:
            return [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def submit_all(self, requests: Sequence[Request]) -> list[RequestHandle]:
        """Ask for the continuation of checked requests, whatever `most_waiting` is. Raises RunError after `close`."""
        with self._changed:
            self._check_open()
            handles: list[RequestHandle] = []
            try:
                handles += (self._handle(request, None) for request in requests)
            except RunError:  # an adapter was unloaded meanwhile
                for handle in handles:
                    self.runner.loaded_adapters.release(handle.request.adapter)
                raise
            self._submitted.extend(handles)
            self._changed.notify_all()
        return handles

    def stats(self) -> EngineStats:
        """Counts of requests, tokens and pages."""
        with self._changed:
            scheduler, pages = self._scheduler, self.runner.slots.pages
            return EngineStats(
                running=scheduler.running,
                waiting=self._waiting(),
                ended=self._ended,
                tokens=self._tokens,
                set_back=scheduler.set_back,
                reused_tokens=scheduler.reused,
                pages=0 if pages is None else pages.pool.count - 1,
                held_pages=0 if pages is None else pages.pool.held,
            )

    # Steps

    @property
    def driven(self) -> bool:
        """Whether a thread takes the steps."""
        return self._thread is not None

    def step(self) -> bool:
        """Take one prefill chunk or decode step, and hand out its tokens. False where there is nothing to do, and after
        `close`."""
        with self._step_lock:
            return False if self._closed else self._step()

    def start(self) -> None:
        """Start the thread that takes the steps, unless it runs."""
        with self._changed:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._drive, name="gptoss-export engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End all requests as cancelled, and the thread. Requests cannot be submitted any more."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._step_lock:
            self._end_all("cancelled", None)
        self._take_back()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RunError("the engine was closed; make another one")

    def _handle(self, request: Request, on_token: Callable[[Token], object] | None) -> RequestHandle:
        """The handle of a request, which needs its adapter until it ends."""
        self.runner.loaded_adapters.acquire(request.adapter)
        return RequestHandle(self, request, on_token)

    def _waiting(self) -> int:
        return len(self._submitted) + self._scheduler.waiting

    def _step(self) -> bool:
        scheduler = self._scheduler
        with self._changed:
            for handle in self._submitted:
                added = scheduler.add(handle.request)
                self._handles[added], self._sequences[handle] = handle, added
            self._submitted.clear()
            cancelled, self._cancelled = self._cancelled, []
        for handle in cancelled:
            if handle in self._sequences:
                scheduler.cancel(self._sequences[handle])
        if not scheduler.busy:
            return False
        try:
            result = scheduler.step()
        except Exception as error:  # nothing is known of the sequences any more; later requests start anew
            self._scheduler = Scheduler(self.runner.executor, self.runner.slots, serving=True, reuse=self._reuse)
            self._end_all("error", error)
            return True
        for token in result.tokens:
            served = self._handles.get(token.sequence)
            if served is None:  # a callback has closed the engine
                continue
            try:
                served.put(Token.of(0, token), token.sequence.reused or 0)
            except Exception as error:  # of the caller's `on_token`
                scheduler.cancel(token.sequence)
                self._end(served, "error", error)
        for ended in result.ended:
            if (of_ended := self._handles.get(ended)) is not None:
                self._end(of_ended, ended.finish or "", ended.error)
        self._tokens += len(result.tokens)
        return True

    def _end(self, handle: RequestHandle, finish: str, error: Exception | None) -> None:
        with self._changed:
            if (ended := self._sequences.pop(handle, None)) is not None:
                del self._handles[ended]
            self._ended += 1
        self.runner.loaded_adapters.release(handle.request.adapter)
        handle.end(finish, error)

    def _end_all(self, finish: str, error: Exception | None) -> None:
        with self._changed:
            handles = [*self._sequences, *self._submitted]
            self._submitted.clear()
        for handle in handles:
            self._end(handle, finish, error)

    def _drive(self) -> None:
        """Take steps as long as there is work; wait for more."""
        while True:
            worked = self.step()
            with self._changed:
                if self._closed:
                    return
                if not (worked or self._submitted or self._cancelled):
                    self._changed.wait()
