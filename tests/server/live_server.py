"""A server on a real socket, in a thread of this process, over an engine that a test scripts."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from scripted_engine import CONTEXT, VOCABULARY, ScriptedEngine, echo

from gptoss_export.server.admission import Admission
from gptoss_export.server.app import make_app
from gptoss_export.server.engine_health import WatchedEngine
from gptoss_export.server.log import Log
from gptoss_export.server.process import DrainingServer, address_of, listening_socket, make_server
from gptoss_export.server.served_model import ServedModel
from gptoss_export.server.settings import LOCALHOST, ServerSettings
from gptoss_export.structure.structures import Structures

MODEL = "tiny"
SETTINGS = ServerSettings(hosts=LOCALHOST)
LONGEST_STEP = 1.0  # seconds


@dataclass
class Live:
    """A server that runs, what it serves, a client of it, and the lines of its log."""

    url: str
    http: httpx.Client
    engine: ScriptedEngine
    admission: Admission
    server: DrainingServer
    lines: list[str] = field(default_factory=list)

    def post(self, path: str, value: Any, **options: Any) -> httpx.Response:
        """One request."""
        return self.http.post(path, json=value, **options)

    def chat(self, text: str = "Hi", **fields: Any) -> httpx.Response:
        """A chat completion of one message."""
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"model": MODEL, "messages": messages, **fields})

    def works(self) -> None:
        """Fails unless the server answers, and its engine has nothing left to do."""
        self.engine.script = echo
        assert self.chat("Still there?").json()["choices"][0]["message"]["content"] == "You said: Still there?"
        self.engine.wait_until(lambda stats: stats.running == stats.waiting == 0)


@contextmanager
def serving(
    engine: ScriptedEngine | None = None,
    send_buffer: int | None = None,
    adapters: tuple[str, ...] = (),
    **settings: Any,
) -> Iterator[Live]:
    """A server of the engine with some settings, until the end of the context. send_buffer: bytes that the system holds
    of a connection; None: megabytes."""
    engine = engine or ScriptedEngine()
    chosen = replace(SETTINGS, **settings)
    lines: list[str] = []
    log = Log(lines.append, as_json=True)
    admission = Admission(chosen)
    app = make_app(replace(served(engine), adapters=lambda: adapters), chosen, log, admission)
    ready = threading.Event()
    bound = listening_socket("127.0.0.1", 0)
    if send_buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = make_server(app, admission, chosen.drain_seconds, ready.set)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        with httpx.Client(base_url=address_of(bound), timeout=30, trust_env=False, verify=False) as client:
            yield Live(address_of(bound), client, engine, admission, server, lines)
    finally:
        server.drain()
        server.drain()
        thread.join(10)
        engine.close()
        log.close()
        assert not thread.is_alive()


def served(
    engine: ScriptedEngine, today: Callable[[], datetime.date] = lambda: datetime.date(2026, 3, 4)
) -> ServedModel:
    """The engine as a server offers it."""
    structures = Structures(engine.tokenizer, VOCABULARY)
    stops = (engine.tokenizer.return_,)
    watched = WatchedEngine(engine, LONGEST_STEP)  # type: ignore[arg-type]
    return ServedModel(MODEL, watched, engine.tokenizer, structures, CONTEXT, VOCABULARY, stops, 1_700_000_000, today)
