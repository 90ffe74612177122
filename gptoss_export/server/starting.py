"""From a loaded artifact to a server of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from ..harmony.vocabulary import HarmonyTokenizer
from ..progress import Progress
from ..runtime.engine import Engine
from ..runtime.runner import Runner
from ..structure.structures import Structures
from .admission import Admission
from .app import make_app
from .engine_health import LONGEST_STEPS, WatchedEngine
from .log import Log
from .process import make_server, run
from .served_model import ServedModel
from .settings import ServerSettings

_WARM_UP = 200  # tokens


@dataclass(frozen=True)
class Prepared:
    """A loaded artifact with what text needs."""

    runner: Runner
    tokenizer: HarmonyTokenizer
    structures: Structures

    @classmethod
    def of(cls, runner: Runner, progress: Progress) -> Prepared:
        """Open the tokenizer, and prepare structured output: now, since no other thread runs meanwhile.

        Raises UsageError for an artifact without a tokenizer of gpt-oss's chat format.
        """
        with progress.stage("open the tokenizer"):
            tokenizer = HarmonyTokenizer.open(runner.folder, runner.manifest)
            structures = Structures(tokenizer, runner.manifest.model.vocab_size)
        with progress.stage("prepare structured output"):
            structures.prepare()
        return cls(runner, tokenizer, structures)

    def served(self, engine: Engine, name: str, longest_step: float | None = None) -> ServedModel:
        """The model as a server offers it. longest_step: as WatchedEngine has it; None: that of the device."""
        manifest = self.runner.manifest
        return ServedModel(
            name=name,
            engine=WatchedEngine(engine, LONGEST_STEPS[manifest.device] if longest_step is None else longest_step),
            tokenizer=self.tokenizer,
            structures=self.structures,
            context=self.runner.slots.max_context,
            vocab_size=manifest.model.vocab_size,
            stop_tokens=tuple(manifest.stop_tokens),
            adapters=lambda: self.runner.adapters,
        )


def serve(
    prepared: Prepared,
    name: str,
    settings: ServerSettings,
    bound: socket.socket,
    log: Log,
    ready: Callable[[], None],
) -> int:
    """Serve at a bound socket until a signal comes; returns the exit code of the process (process.run).

    ready  is called once clients are answered
    """
    admission = Admission(settings)
    with Engine(prepared.runner, most_waiting=settings.max_requests + 1) as engine:  # one of a health check
        warm_up(engine)
        app = make_app(prepared.served(engine, name), settings, log, admission)
        return run(make_server(app, admission, settings.drain_seconds, ready), bound)


def warm_up(engine: Engine) -> None:
    """On a GPU, answer one prompt, so that no client waits for what happens at a first prompt alone: a quarter of a
    second. It has as many tokens as a usual one, since another size of chunk is other code."""
    if engine.runner.manifest.device != "cuda":
        return
    count = min(_WARM_UP, engine.runner.slots.max_context - 2)
    engine.generate([[0] * count], 2, stop_tokens=())
