"""The end of replicas: with an ingress that a test scripts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from gptoss_export.replicas import running
from gptoss_export.replicas.running import Signals, drained


@dataclass
class Ingress:
    """A handle of ingresses whose requests take some time to end."""

    seconds: float
    ends: bool = True
    asked: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def broadcast(self, method: str, seconds: float) -> Ingress:
        """As Serve's handle."""
        assert method == "drain"
        self.asked.append(seconds)
        return self

    def results(self, timeout_s: float) -> list[bool]:
        """As Serve's response."""
        if not self.ends:
            raise RuntimeError("the ingress has died")
        if self.asked[-1] == 0:
            self.over.set()
        return [not self.over.wait(min(self.seconds, timeout_s)), True]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(running, "_EXTRA_SECONDS", 0.2)
    monkeypatch.setattr(running, "_CLOSE_SECONDS", 0)
    yield


def first() -> Signals:
    signals = Signals()
    signals.came(signal.SIGTERM, None)
    assert signals.first.is_set() and not signals.second.is_set()
    return signals


def test_all_requests_end() -> None:
    ingress = Ingress(0.1)
    assert drained(ingress, 30, first())  # type: ignore[arg-type]
    assert ingress.asked == [30]


def test_a_second_signal_ends_them() -> None:
    ingress, signals = Ingress(60), first()
    threading.Timer(0.1, signals.came, (signal.SIGINT, None)).start()
    begin = time.monotonic()
    assert not drained(ingress, 60, signals)  # type: ignore[arg-type]
    assert time.monotonic() - begin < 5
    assert ingress.asked == [60, 0]
    assert signals.numbers == [signal.SIGTERM, signal.SIGINT]


def test_an_ingress_that_has_died() -> None:
    assert not drained(Ingress(0, ends=False), 60, first())  # type: ignore[arg-type]
