"""What an ingress does with requests, in one process: without replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Send

from gptoss_export.replicas.calls import Call
from gptoss_export.replicas.ingress import Ingress
from gptoss_export.replicas.options import ReplicaOptions
from gptoss_export.server.admission import Admission
from gptoss_export.server.settings import ServerSettings

KEY = {"authorization": "Bearer key"}
JSON = {"content-type": "application/json"}


class Forwarding:
    """Notes the calls, and answers them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def forward(self, call: Call, send: Send, *others: Any) -> None:
        """As the real one."""
        self.calls.append(call)
        await Response(b"forwarded")({"type": "http"}, None, send)  # type: ignore[arg-type]


def asked(*requests: tuple[str, str], root_path: str = "", **headers: str) -> tuple[list[httpx.Response], list[Call]]:
    """Ask an ingress that has a key; its responses, and what it forwards."""
    forwarding = Forwarding()
    settings = ServerSettings(api_keys=("key",), origins=("https://example.org",))

    async def figures(request: Request) -> Response:
        return PlainTextResponse("figures")

    async def run() -> list[httpx.Response]:
        ingress = SimpleNamespace(
            _options=ReplicaOptions(Path("artifact"), "m", settings=settings),
            _admission=Admission(settings),
            _forwarding=forwarding,
            _health=figures,
            _metrics=figures,
        )
        app = Ingress.__serve_build_asgi_app__(ingress)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await client.request(method, path, headers=JSON | headers, content=b"{}" if method == "POST" else None)
                for method, path in requests
            ]

    return asyncio.run(run()), forwarding.calls


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_a_route_prefix_is_not_a_part_of_the_path(prefix: str) -> None:
    requests = [("GET", f"{prefix}/metrics"), ("GET", f"{prefix}/v1/models"), ("GET", f"{prefix}/other")]
    without, calls = asked(*requests, root_path=prefix)
    assert [response.status_code for response in without] == [401] * 3 and calls == []
    (health,), _ = asked(("GET", f"{prefix}/health"), root_path=prefix)
    assert health.status_code == 200
    requests += [("POST", f"{prefix}/v1/chat/completions")]
    found, calls = asked(*requests, root_path=prefix, **KEY)
    assert [response.text for response in found] == ["figures"] + ["forwarded"] * 3
    assert [(call.path, call.body) for call in calls] == [
        ("/v1/models", b""), ("/other", b""), ("/v1/chat/completions", b"{}")
    ]  # fmt: skip


def test_what_needs_no_key() -> None:
    found, calls = asked(("GET", "/health"), ("GET", "/"), ("GET", "/page/api.js"))
    assert [response.status_code for response in found] == [200] * 3
    assert [call.path for call in calls] == ["/", "/page/api.js"]


def test_a_page_of_an_allowed_origin_can_read_an_error() -> None:
    (found,), _ = asked(("GET", "/v1/models"), origin="https://example.org")
    assert found.status_code == 401 and found.headers["access-control-allow-origin"] == "https://example.org"
