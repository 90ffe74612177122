"""What /health says of the engine."""

from __future__ import annotations

import time

from live_server import LONGEST_STEP, serving
from scripted_engine import ScriptedEngine


class Broken(ScriptedEngine):
    """Each step fails, as after some errors of a GPU."""

    fails = property(lambda self: RuntimeError("illegal memory access"), lambda self, value: None)  # type: ignore[assignment]


def test_an_engine_that_works() -> None:
    """It is asked by a request of its own, which no figure counts."""
    with serving() as live:
        live.chat()
        for _ in range(3):
            health = live.http.get("/health")
            assert (health.status_code, health.json()) == (200, {"status": "ready"})
        assert "gptoss_engine_ended_total 1.0" in live.http.get("/metrics").text
        live.engine.held.set()  # no request goes on, and the engine still takes steps
        assert live.http.get("/health").status_code == 200


def test_an_engine_that_always_fails() -> None:
    with serving(Broken()) as live:
        assert live.http.get("/health").status_code == 200  # nothing has happened yet
        assert live.chat().status_code == 500
        for _ in range(2):
            health = live.http.get("/health")
            assert health.status_code == 503
            assert health.json() == {"status": "failing", "reason": "the engine fails: illegal memory access"}


def test_an_engine_whose_thread_has_ended() -> None:
    with serving() as live:
        live.engine.close()
        begin = time.monotonic()
        while (health := live.http.get("/health")).status_code == 200:
            assert time.monotonic() - begin < 20 * LONGEST_STEP
        assert health.json() == {"status": "failing", "reason": f"the engine took no step for {LONGEST_STEP:g} s"}
        assert time.monotonic() - begin > LONGEST_STEP / 2
