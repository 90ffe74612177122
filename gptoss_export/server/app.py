"""The application of a server: its paths, and the layers around them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import RunError
from .access import access_layers
from .admission import Admission
from .chat import chat
from .completions import complete
from .endpoint import Endpoint, Handler
from .errors import ApiError
from .log import Log
from .metrics import METRICS_TYPE, Metrics
from .page_files import PageFiles
from .record import Record
from .recording import Recording, note
from .responses import respond
from .served_model import ServedModel
from .serving import Serving
from .settings import ServerSettings

_POST: dict[str, Handler] = {
    "/v1/chat/completions": chat,
    "/v1/completions": complete,
    "/v1/responses": respond,
}


def make_app(
    served: ServedModel, settings: ServerSettings, log: Log | None = None, admission: Admission | None = None
) -> FastAPI:
    """The application. It belongs to one event loop, and its engine has a thread of its own.

    log        gets a line for each request
    admission  lets requests in; who ends the server has it too
    """
    admission = admission or Admission(settings)
    serving = Serving(served, settings, admission, Metrics(served.engine.stats, admission))
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for path, handler in _POST.items():
        app.router.routes.append(Route(path, Endpoint(serving, handler), methods=["POST"]))
    _add_reading(app, serving)
    _add_errors(app)
    recording = Middleware(Recording, metrics=serving.metrics, admission=admission, log=log)
    # The last layer is the outermost.
    for layer in reversed(access_layers(settings, recording)):
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    return app


def _add_reading(app: FastAPI, serving: Serving) -> None:
    """The paths that are only read."""
    model = serving.model
    page = PageFiles.read()

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": model.created, "owned_by": "gptoss-export"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in model.names]})

    async def one_model(request: Request) -> Response:
        model.adapter_of(name := request.path_params["name"])
        return JSONResponse(described(name))

    async def health(request: Request) -> Response:
        if serving.admission.draining:
            return JSONResponse({"status": "draining"}, 503)
        try:
            await model.engine.check()
        except RunError as error:
            return JSONResponse({"status": "failing", "reason": str(error)}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(serving.metrics.text(), headers={"content-type": METRICS_TYPE})

    for path, endpoint in (
        ("/v1/models", models),
        ("/v1/models/{name:path}", one_model),
        ("/health", health),
        ("/metrics", metrics),
        ("/", page.index),
        ("/page/{name}", page.file),
    ):
        app.router.add_route(path, endpoint, methods=["GET"])


def _add_errors(app: FastAPI) -> None:
    """Errors of the paths, and of requests that no path takes, in OpenAI's form."""

    async def reported(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        note(Record.of(request.scope), error)
        return error.response()

    async def no_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        if error.status_code == 405:
            message, code = f"{where}: this path does not take the method", "method_not_allowed"
        else:
            message, code = f"{where}: the server has no such path", "not_found"
        return await reported(request, ApiError(error.status_code, message, code=code, headers=error.headers))

    app.add_exception_handler(ApiError, reported)
    app.add_exception_handler(HTTPException, no_path)
