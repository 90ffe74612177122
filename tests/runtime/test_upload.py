"""The threads of an upload, without a GPU: pinned memory and streams are faked. On one: tests/gpu."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptoss_export.runtime.cuda.upload import _PIECE, upload

CPU = torch.device("cpu")


class Event:
    def synchronize(self) -> None:
        pass

    def record(self, stream: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The streams that threads were given."""
    given: list[Any] = []
    empty: Callable[..., torch.Tensor] = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, pin_memory=False, **options: empty(*sizes, **options))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "set_stream", given.append)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return given


@pytest.mark.parametrize("mode", [False, True])
def test_every_byte_arrives(mode: bool, streams: list[Any]) -> None:
    sizes = [0, 1, _PIECE - 2, _PIECE, _PIECE + 2, *[3 * _PIECE // 2] * 10]
    sources = [torch.randint(256, (size,), dtype=torch.uint8) for size in sizes]
    sources += [sources[-1].view(torch.bfloat16).view(-1, 64)]
    with torch.inference_mode(mode):
        filled = [torch.zeros_like(source) for source in sources]
        upload(list(zip(filled, sources, strict=True)), CPU)
    for found, source in zip(filled, sources, strict=True):
        assert torch.equal(found.view(-1).view(torch.uint8), source.view(-1).view(torch.uint8))
    assert 1 <= len(streams) <= 4


def test_an_upload_that_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pieces fail than there is pinned memory, while the first, which the caller waits for, is on its way."""
    calls: list[int] = []

    def move(to: int, source: int, count: int) -> None:
        calls.append(count)
        if count == 2:
            time.sleep(0.5)
        else:
            raise RuntimeError("a piece failed")

    monkeypatch.setattr(ctypes, "memmove", move)
    first, bad = torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="a piece failed"):
        upload([(first.clone(), first), *[(bad.clone(), bad)] * 100], CPU)
    assert len(calls) > 9


def test_sizes_that_differ() -> None:
    with pytest.raises(ValueError, match="2 bytes cannot be filled with 1"):
        upload([(torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8))], CPU)
