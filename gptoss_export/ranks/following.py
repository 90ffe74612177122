"""A rank other than 0: it loads its part of the artifact, and does what rank 0 tells it with an executor of its own."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from ..errors import GptOssExportError
from ..model.sampling_state import Choice
from ..runtime.executor import ChunkOutput, Executor, Part, Sampling, TableEntry
from ..runtime.sampling_params import SamplingParams
from .channel import Receiver
from .control import Control
from .leading import KINDS, OUTPUTS
from .messages import Kind, Message, decode
from .torch_group import TorchGroup


@dataclass(frozen=True)
class LoadFacts:
    """How all ranks load an artifact.

    folder, manifest_sha256   the artifact, and which contents its manifest.json must have
    tune_process, kv_memory, fixed_width   of `loading.load`
    threads                   of torch, on a CPU
    first_gpu                 that of rank 0; the others have those behind it
    through_host              whether GPUs send through the memory of the host
    """

    folder: str
    manifest_sha256: str
    tune_process: bool
    kv_memory: int | None
    fixed_width: bool
    threads: int
    first_gpu: int
    through_host: bool


@dataclass(frozen=True)
class Place:
    """The place of a rank among all of them (`TorchGroup`)."""

    rank: int
    ranks: int
    device: str
    port: int


def serve_rank(
    connected: socket.socket,
    load: Callable[[LoadFacts, int, Callable[[int], int], tuple[int, ...]], Executor],
) -> NoReturn:
    """Be a rank until rank 0 ends, or drops its runner, or an error. Ends the process.

    connected  to rank 0
    load       loads the part of a rank; the last arguments are for LoadSettings.agreed and places
    """
    with suppress(OSError):
        _, descriptors, _, _ = socket.recv_fds(connected, 1, 2)
    control = Control(connected)
    given = control.receive()
    if given is None:
        os._exit(0)
    descriptor, *through = descriptors
    facts, place = LoadFacts(**given["load"]), Place(**given["place"])
    begin = time.monotonic()
    try:
        threading.Thread(target=_end_with_rank_0, args=(control,), daemon=True).start()
        _use_device(facts, place)
        group = TorchGroup(place.rank, place.ranks, place.device, place.port, through[0] if through else None)
        control.send(said="imported")
        group.join()

        def agreed(pages: int) -> int:
            control.send(said="room", pages=pages)
            return group.announced_pages()

        executor = load(facts, place.rank, agreed, group.places)
        receiver = Receiver(descriptor, place.ranks - 1, place.rank - 1)
        control.send(said="ready")
        follower = _Follower(executor)
        while True:
            message = receiver.receive()
            begin = time.monotonic()
            follower.do(decode(message))
    except BaseException as error:
        waited = time.monotonic() - begin
        known = isinstance(error, GptOssExportError | OSError)
        with suppress(OSError):
            control.send(error=str(error) if known else f"{type(error).__name__}: {error}", waited=waited)
        os._exit(1)


def _end_with_rank_0(control: Control) -> None:
    """Nothing that this process holds outlives it, so that it may end in the middle of anything."""
    control.receive()
    os._exit(0)


def _use_device(facts: LoadFacts, place: Place) -> None:
    if place.device == "cpu":
        torch.set_num_threads(facts.threads)
    else:
        torch.cuda.set_device((facts.first_gpu + place.rank) % torch.cuda.device_count())


class _Follower:
    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._blocks: Iterator[ChunkOutput] = iter(())
        self._outputs: list[ChunkOutput | None] = []

    def do(self, message: Message) -> None:
        """What one message says."""
        _DOERS[message.kind](self, message)

    def _set_pages(self, message: Message) -> None:
        kinds, *columns = map(message.numbers, range(4))
        assert self._executor.paged_memory is not None
        rows = zip((KINDS[kind] for kind in kinds), *columns, strict=True)
        self._executor.paged_memory.set_pages([TableEntry(*row) for row in rows])

    def _copy_pages(self, message: Message) -> None:
        assert self._executor.paged_memory is not None
        self._executor.paged_memory.copy_pages(list(zip(message.numbers(0), message.numbers(1), strict=True)))

    def _prefill(self, message: Message) -> None:
        slot, start, ends, outputs = message.numbers(0)
        self._outputs = []
        self._blocks = self._executor.prefill(Part(slot, start, message.numbers(1), bool(ends)), OUTPUTS[outputs])

    def _next_output(self, message: Message) -> None:
        if (block := next(self._blocks, None)) is not None:
            self._outputs.append(block)

    def _prefill_shared(self, message: Message) -> None:
        facts, tokens = message.numbers(0), message.numbers(1)
        parts = []
        for slot, start, ends, count in zip(*(facts[index::4] for index in range(4)), strict=True):
            parts.append(Part(slot, start, tokens[:count], bool(ends)))
            tokens = tokens[count:]
        self._outputs = self._executor.prefill_shared(parts)

    def _decode(self, message: Message) -> None:
        slots, tokens, lengths = map(message.numbers, range(3))
        self._executor.decode(dict(zip(slots, tokens, strict=True)), lengths)

    def _set_sampling(self, message: Message) -> None:
        given = json.loads(message.data(0))
        self._executor.set_sampling({int(slot): _sampling(data) for slot, data in given.items()})

    def _allow(self, message: Message) -> None:
        slots, masks = message.numbers(0), message.data(1)
        size = len(masks) // len(slots)
        self._executor.allow({slot: masks[at * size : (at + 1) * size] for at, slot in enumerate(slots)})

    def _keep_output(self, message: Message) -> None:
        slot, index = message.numbers(0)
        output = self._outputs[index]
        assert output is not None
        self._executor.keep_output(slot, output)

    def _choose_first(self, message: Message) -> None:
        (choice,), slots, lengths = map(message.numbers, range(3))
        self._executor.choose_first(slots, lengths, Choice(choice))

    def _step(self, message: Message) -> None:
        (choice,), slots, lengths = map(message.numbers, range(3))
        self._executor.step(slots, lengths, Choice(choice))

    def _kept_logits(self, message: Message) -> None:
        self._executor.pending_tokens(True)


_DOERS: dict[Kind, Callable[[_Follower, Message], None]] = {
    Kind.SET_PAGES: _Follower._set_pages,
    Kind.COPY_PAGES: _Follower._copy_pages,
    Kind.PREFILL: _Follower._prefill,
    Kind.NEXT_OUTPUT: _Follower._next_output,
    Kind.PREFILL_SHARED: _Follower._prefill_shared,
    Kind.DECODE: _Follower._decode,
    Kind.SET_SAMPLING: _Follower._set_sampling,
    Kind.ALLOW: _Follower._allow,
    Kind.KEEP_OUTPUT: _Follower._keep_output,
    Kind.CHOOSE_FIRST: _Follower._choose_first,
    Kind.STEP: _Follower._step,
    Kind.KEPT_LOGITS: _Follower._kept_logits,
}


def _sampling(data: dict[str, Any]) -> Sampling:
    params = SamplingParams(**data["params"])
    return Sampling(params, data["prompt"], tuple(data["tokens"]), frozenset(data["stop_tokens"]))
