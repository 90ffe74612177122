"""A replica: the artifact, an engine and the server's application, in a process of Ray."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import ray
from ray import serve

from ..loading import load
from ..progress import Progress
from ..runtime.engine import Engine
from ..server.admission import Admission
from ..server.app import make_app
from ..server.log import Log
from ..server.process import share_the_lock
from ..server.starting import Prepared, warm_up
from .calls import Call, Figures, Part
from .in_process import parts, whole
from .options import ReplicaOptions

_MOST_SPACING = 1.0  # seconds


class Replica:
    """A deployment of Ray Serve. Raises what `load` raises, and UsageError for an artifact without a tokenizer of the
    chat format."""

    def __init__(self, options: ReplicaOptions, created: int) -> None:
        """created: when the model was made, as clients are told; the same for all replicas"""
        self._options = options
        context = serve.get_replica_context()
        self._id: str = context.replica_id.unique_id
        # Who may use the server was found out by the ingress.
        settings = replace(options.settings, api_keys=(), hosts=(), origins=())
        loading = options.loading
        runner = load(
            options.artifact,
            loading.verify_hashes,
            tune_process=True,
            trust=list(loading.trust) or None,
            fixed_width=loading.fixed_width,
            kv_memory=loading.kv_memory,
        )
        prepared = Prepared.of(runner, Progress())
        engine = Engine(runner, most_waiting=settings.max_requests + 1)  # one of a health check
        engine.start()
        warm_up(engine)
        longest_step = options.patience.longest_step(runner.manifest.device)
        model = replace(prepared.served(engine, options.name, longest_step), created=created)
        self._engine = model.engine
        self._app = make_app(model, settings, Log(_write, as_json=False), Admission(settings))
        self._running = 0
        share_the_lock()

    async def answer(self, call: Call) -> AsyncGenerator[Part, None]:
        """The response to a request. The first part comes at once."""
        self._running += 1
        try:
            yield Part(replica=self._id)
            beat = self._options.patience.beat
            async with aclosing(parts(self._app, call, beat, self._spacing)) as stream:
                async for part in stream:
                    yield part
        finally:
            self._running -= 1

    def _spacing(self) -> float:
        """Seconds between two parts of a response, so that all ingresses together can pass all parts on. It supposes
        that the other replicas have as much to send."""
        options = self._options
        return min(_MOST_SPACING, self._running * options.replicas / (options.parts * options.ingresses))

    async def figures(self, call: Call) -> Figures:
        """The figures of this replica, which the call is for."""
        response = await whole(self._app, call)
        node = ray.util.get_node_ip_address()
        return Figures(self._id, node, os.getpid(), response.body.decode())

    async def check_health(self) -> None:
        """Called by Serve. Raises RunError where the engine does not work any more."""
        await self._engine.check()


def _write(line: str) -> None:
    """To where Ray reads what this process prints."""
    print(line, flush=True)
