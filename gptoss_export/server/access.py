"""Who may use the server: the names that it is asked by, the pages that ask, and the key that they bring."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError
from .record import Record
from .recording import note
from .route_path import route_path
from .settings import ServerSettings

_OPEN = ("", "/", "/health")  # paths that need no key; "" is the page under a prefix


def access_layers(settings: ServerSettings, recording: Middleware) -> list[Middleware]:
    """The layers around an application that say who may use it, the outermost first.

    recording  the layer that gives each request its record, and answers where the application fails. The answers of
               each layer get the headers with which a page of an allowed origin can read them
    """
    layers = [recording, Middleware(Access, settings=settings)]
    if settings.origins:
        cross_origin = Middleware(
            CrossOrigin,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
        layers.insert(0, cross_origin)
    return layers


class CrossOrigin(CORSMiddleware):
    """Lets browsers give pages of allowed origins the answers. Other origins are left to Access, which says why it
    refuses them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks_first = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if asks_first and not self.is_allowed_origin(Headers(scope=scope).get("origin", "")):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Access:
    """A layer around the server's application that refuses requests.

    - The Host header must name the server (settings.hosts_of says why).
    - A browser says in the Origin header which page asks. A page of another origin could make the server work without a
      person who wants it, also where it cannot read the answer. So its origin must be one of those that are allowed.
    - With API keys, a request must bring one. The page and /health need none.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            error = self._host(headers) or self._origin(headers) or self._key(scope, headers)
            if error is not None:
                note(Record.of(scope), error)
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _host(self, headers: Mapping[bytes, str]) -> ApiError | None:
        names = self._settings.hosts
        host = headers.get(b"host", "")
        if not names or _without_port(host) in names:
            return None
        return ApiError(
            403,
            f"Host: found {host[:200]!r}, expected {', '.join(names)}; to serve another name, start the server with "
            "--allow-host",
            code="host_not_allowed",
        )

    def _origin(self, headers: Mapping[bytes, str]) -> ApiError | None:
        origin, allowed = headers.get(b"origin"), self._settings.origins
        if origin is None or "*" in allowed or origin in allowed:
            return None
        if _with_port(origin) == _with_port(f"{origin.partition('://')[0]}://{headers.get(b'host', '')}"):
            return None
        return ApiError(
            403,
            f"Origin: found {origin[:200]!r}, a page of another origin; to let it use the server, start the server "
            "with --allow-origin",
            code="origin_not_allowed",
        )

    def _key(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        path = route_path(scope)
        if not self._keys or path in _OPEN or path.startswith("/page/"):
            return None
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        given = _digest(key.strip())
        # Each key is compared, in a time that does not depend on where they differ.
        good = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() == "bearer" and any(good):
            return None
        return ApiError(
            401,
            "Authorization: expected 'Bearer' and an API key of this server",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _without_port(host: str) -> str:
    """The name in a Host header, as names are compared."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower().removesuffix(".")


def _with_port(origin: str) -> str:
    """An origin with its port, also where it is that of the scheme."""
    scheme, _, host = origin.lower().partition("://")
    _, colon, port = host.rpartition(":")
    return (
        f"{scheme}://{host}" if colon and port.isdecimal() else f"{scheme}://{host}:{443 if scheme == 'https' else 80}"
    )
