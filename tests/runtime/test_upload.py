"""The threads of an upload, without a GPU: pinned memory and the driver are faked. On one: tests/gpu."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gptoss_export.cuda import upload as module
from gptoss_export.cuda.upload import _PIECE, _THREADS, upload
from gptoss_export.host_memory import HostBytes

STREAM = 7


class FakeGpu:
    """Counts the threads in whose calls it was current."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    @contextmanager
    def current(self) -> Iterator[None]:
        self.threads.add(threading.get_ident())
        yield


class FakeBuffer:
    """Ordinary memory. It records that it was waited for before it is filled again."""

    def __init__(self, gpu: Any, size: int) -> None:
        self.buffer = ctypes.create_string_buffer(size)
        self.address = ctypes.addressof(self.buffer)
        self.pointer = ctypes.c_void_p(self.address)

    @property
    def memory(self) -> memoryview:
        return memoryview(self.buffer).cast("B")

    def wait(self) -> None:
        pass

    def record(self, stream: int) -> None:
        assert stream == STREAM

    def __enter__(self) -> FakeBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the driver."""
    made: list[str] = []

    def call(name: str, *arguments: Any) -> None:
        made.append(name)
        if name == "cuMemcpyHtoDAsync_v2":
            to, source, size, stream = arguments
            assert stream.value == STREAM
            ctypes.memmove(to.value, source.value, size.value)

    monkeypatch.setattr(module, "call", call)
    monkeypatch.setattr(module, "PinnedBuffer", FakeBuffer)
    return made


def as_bytes(tensor: torch.Tensor) -> HostBytes:
    return HostBytes(memoryview(tensor.view(-1).view(torch.uint8).numpy()))


@pytest.mark.parametrize("mode", [False, True])
def test_every_byte_arrives(mode: bool, calls: list[str]) -> None:
    sizes = [0, 1, _PIECE - 2, _PIECE, _PIECE + 2, *[3 * _PIECE // 2] * 10]
    sources = [torch.randint(256, (size,), dtype=torch.uint8) for size in sizes]
    sources += [sources[-1].view(torch.bfloat16).view(-1, 64)]
    gpu: Any = FakeGpu()
    with torch.inference_mode(mode):
        filled = [torch.zeros_like(source) for source in sources]
        upload([(to, as_bytes(source)) for to, source in zip(filled, sources, strict=True)], gpu, STREAM)
    for found, source in zip(filled, sources, strict=True):
        assert torch.equal(found.view(-1).view(torch.uint8), source.view(-1).view(torch.uint8))
    assert 2 <= len(gpu.threads) <= _THREADS + 1 and calls[-1] == "cuStreamSynchronize"


def test_memory_that_cannot_be_written(calls: list[str]) -> None:
    """Files are mapped so."""
    to, gpu = torch.zeros(3, dtype=torch.uint8), FakeGpu()
    upload([(to, HostBytes(memoryview(b"abc")))], gpu, STREAM)  # type: ignore[arg-type]
    assert bytes(to.tolist()) == b"abc"


class FailingBytes(HostBytes):
    def read(self, start: int, to: memoryview) -> None:
        raise RuntimeError("a piece failed")


class SlowBytes(HostBytes):
    def read(self, start: int, to: memoryview) -> None:
        time.sleep(0.5)
        super().read(start, to)


def test_an_upload_that_fails_ends(calls: list[str]) -> None:
    """More pieces fail than there is pinned memory, while the first, which the caller waits for, is on its way."""
    to, gpu = torch.zeros(2, dtype=torch.uint8), FakeGpu()
    with pytest.raises(RuntimeError, match="a piece failed"):
        copies = [(to, SlowBytes(memoryview(b"ab"))), *[(to, FailingBytes(memoryview(b"ab")))] * 100]
        upload(copies, gpu, STREAM)  # type: ignore[arg-type]
    assert to.tolist() == list(b"ab") and calls[-1] == "cuStreamSynchronize"


def test_sizes_that_differ() -> None:
    gpu: Any = FakeGpu()
    with pytest.raises(ValueError, match="2 bytes cannot be filled with 1"):
        upload([(torch.zeros(2, dtype=torch.uint8), HostBytes(memoryview(b"a")))], gpu, STREAM)
