"""The ingress: it takes requests from Serve's proxy, says who may ask, and passes them on to replicas."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ReplicaState
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..server.access import access_layers
from ..server.admission import Admission
from ..server.body import read_body
from ..server.errors import ApiError, internal
from ..server.metrics import METRICS_TYPE
from ..server.record import Record
from ..server.route_path import route_path
from ..server.while_connected import while_connected
from .calls import Call, Figures
from .forwarding import Forwarding
from .ingress_figures import IngressFigures
from .options import ReplicaOptions

LOGGER = logging.getLogger(__name__)
_GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_KEPT = (b"authorization", b"cookie", b"origin")  # headers that replicas do not get: the ingress has checked them
_GRACE = 5.0  # seconds that a request may take beyond `request_seconds`, so that its replica ends it
_LAST_WORDS = 2.0  # seconds for requests that are ended to say so
_FIGURES_SECONDS = 2.0  # for each replica to say its figures


@serve.ingress()
class Ingress:
    """A deployment of Ray Serve.

    deployment  the name by which Serve knows the replicas
    """

    def __init__(self, options: ReplicaOptions, replicas: DeploymentHandle, deployment: str) -> None:
        self._options, self._deployment = options, deployment
        self._application = serve.get_replica_context().app_name
        self._replica_figures = replicas.options(method_name="figures")
        settings = options.settings
        most = settings.max_requests * options.replicas
        self._admission = Admission(
            replace(settings, max_requests=most, request_seconds=settings.request_seconds + _GRACE)
        )
        self._figures = IngressFigures(self._admission)
        self._forwarding = Forwarding(replicas, options, self._figures)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Serve."""
        around = access_layers(self._options.settings, Middleware(Recorded))
        routes = [
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/{path:path}", _Passed(self._options, self._admission, self._forwarding)),
        ]
        return Starlette(routes=routes, middleware=around)

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests, and let those that run end; after some seconds, end them with an error. Returns whether
        all ended by themselves."""
        complete = await self._admission.drain(seconds)
        if not complete:
            await self._admission.drain(_LAST_WORDS)
        return complete

    async def _health(self, request: Request) -> Response:
        running = await asyncio.to_thread(self._running)
        status = "draining" if self._admission.draining else "ready" if running else "starting"
        found = {"status": status, "replicas": running, "wanted": self._options.replicas}
        return JSONResponse(found, 200 if status == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        running = await asyncio.to_thread(self._running)
        asked = await asyncio.gather(*(self._of_replica(place) for place in range(running)))
        found = {figures.replica: figures for figures in asked if figures is not None}
        text = self._figures.text([figures for _, figures in sorted(found.items())])
        return Response(text, headers={"content-type": METRICS_TYPE})

    def _running(self) -> int:
        """Replicas that run, as Serve's controller knows them."""
        application = serve.status().applications.get(self._application)
        deployment = application.deployments.get(self._deployment) if application else None
        return deployment.replica_states.get(ReplicaState.RUNNING, 0) if deployment else 0

    async def _of_replica(self, place: int) -> Figures | None:
        """The figures of one replica; None where it does not answer."""
        call = Call("GET", "/metrics", place=place)
        response = contextvars.Context().run(self._replica_figures.remote, call)  # forwarding.py says why
        assert isinstance(response, DeploymentResponse)
        try:
            async with asyncio.timeout(_FIGURES_SECONDS):
                figures: Figures = await response
                return figures
        except (TimeoutError, RayError, RayServeException) as error:
            LOGGER.warning("no figures of replica %d: %s", place, error)
            response.cancel()
            return None


class Recorded:
    """A layer that gives each request the record that the other layers note errors in, and answers where they fail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        Record(route_path(scope)).keep(scope)
        started = False

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        except Exception:
            LOGGER.exception("%s failed", scope["path"])
            if started:
                raise
            await internal().response()(scope, receive, send)


class _Passed:
    """An ASGI application that has replicas answer. A client that goes away ends its request at once."""

    def __init__(self, options: ReplicaOptions, admission: Admission, forwarding: Forwarding) -> None:
        self._options, self._admission, self._forwarding = options, admission, forwarding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generates = scope["method"] == "POST" and route_path(scope) in _GENERATING
        try:
            async with self._admission.admitted(1 if generates else 0) as admitted:
                body = b""  # of requests that need none
                if generates:
                    body = await read_body(scope, receive, admitted, self._options.settings.max_body)
                work: Coroutine[Any, Any, None] = self._forwarding.forward(_call(scope, body), send, admitted)
                await while_connected(receive, work)
        except ClientDisconnect:
            pass
        except ApiError as error:
            await error.response()(scope, receive, send)


def _call(scope: Scope, body: bytes) -> Call:
    headers = tuple((name, value) for name, value in scope["headers"] if name not in _KEPT)
    client = scope.get("client")
    return Call(
        scope["method"],
        route_path(scope),
        scope.get("query_string", b""),
        headers,
        body,
        (client[0], client[1]) if client else None,
    )
