"""Who may use a server: keys, names, and web pages of other origins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from live_server import Live, served, serving
from openai import AuthenticationError, OpenAI
from scripted_engine import ScriptedEngine

from gptoss_export.server.app import make_app
from gptoss_export.server.served_model import ServedModel
from gptoss_export.server.settings import ServerSettings, hosts_of, is_loopback


@pytest.fixture(scope="module")
def module_server() -> Iterator[Live]:
    """A server with two keys, that a page of https://example.org may use."""
    with serving(api_keys=("first-key", "second-key"), origins=("https://example.org",)) as live:
        yield live


def status(live: Live, path: str = "/v1/models", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return live.http.get(path, headers=named).status_code


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_a_good_key(live: Live, key: str) -> None:
    client = OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)
    assert len(client.models.list().data) == 1
    assert status(live, "/metrics", authorization=f"bearer {key}") == 200


@pytest.mark.parametrize(
    "value", ["", "first-key", "Basic first-key", "Bearer", "Bearer first-ke", "Bearer first-key2"]
)
def test_a_wrong_key(live: Live, value: str) -> None:
    for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/v1/nothing", "/v1", "/nothing", "/page"):
        assert status(live, path, authorization=value) == 401
    response = live.http.post("/v1/chat/completions", headers={"authorization": value}, content=b"x" * 1000)
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert live.engine.requests == []


def test_what_the_client_sees(live: Live) -> None:
    with pytest.raises(AuthenticationError, match="expected 'Bearer' and an API key of this server"):
        OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_what_needs_no_key(live: Live) -> None:
    assert [status(live, path) for path in ("/health", "/", "/page/api.js")] == [200, 200, 200]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("localhost.", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
        ("", 403),
    ],
)
def test_names_of_the_server(live: Live, host: str, expected: int) -> None:
    """A page whose name leads to this machine is not a page of this server."""
    assert status(live, "/health", host=host) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://example.org", 200),
        ("https://evil.example", 403),
        ("http://example.org", 403),
        ("https://example.org.evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_origins(live: Live, origin: str, expected: int) -> None:
    assert status(live, "/health", origin=origin) == expected


def test_the_server_s_own_page(live: Live) -> None:
    assert status(live, "/health", origin=live.url) == 200
    assert status(live, "/health", host="localhost", origin="http://localhost:80") == 200
    assert status(live, "/health", host="localhost", origin="http://localhost:81") == 403


def test_a_browser_asks_first(live: Live) -> None:
    headers = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    good = live.http.options("/v1/responses", headers={**headers, "origin": "https://example.org"})
    assert good.status_code == 200 and good.headers["access-control-allow-origin"] == "https://example.org"
    bad = live.http.options("/v1/responses", headers={**headers, "origin": "https://evil.example"})
    assert bad.status_code == 403 and "access-control-allow-origin" not in bad.headers


def test_other_pages_are_refused_unless_they_are_named() -> None:
    with serving() as live:
        headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
        assert live.http.options("/v1/responses", headers=headers).status_code == 403
        assert live.http.get("/v1/models").status_code == 200
    with serving(origins=("*",), hosts=()) as live:
        response = live.http.get("/v1/models", headers={"origin": "https://any.example", "host": "any.example"})
        assert response.status_code == 200 and response.headers["access-control-allow-origin"] == "*"


def test_a_page_of_an_allowed_origin_can_read_every_answer(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its browser reports an error of the network in place of the server's reason."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    def answer(**headers: str) -> tuple[int, str | None]:
        found = live.http.get("/v1/models/tiny", headers={"origin": "https://example.org", **headers})
        return found.status_code, found.headers.get("access-control-allow-origin")

    assert answer() == answer(authorization="Bearer wrong") == (401, "https://example.org")
    assert answer(host="evil.example") == (403, "https://example.org")
    good = "Bearer first-key"
    assert answer(authorization=good) == (200, "https://example.org")
    assert answer(authorization=good, origin="https://evil.example") == (403, None)
    monkeypatch.setattr(ServedModel, "adapter_of", broken)
    assert answer(authorization=good) == (500, "https://example.org")


@pytest.mark.parametrize(
    ("path", "without_key", "with_key"),
    [
        ("/llm/metrics", 401, 200),
        ("/llm/v1/models", 401, 200),
        ("/llm/health", 200, 200),
        ("/llm/page/api.js", 200, 200),
        ("/llm/", 200, 200),
        ("/llm", 404, 404),
        ("/metrics", 401, 200),
    ],
)
def test_a_server_under_a_prefix(path: str, without_key: int, with_key: int) -> None:
    """Paths are those of the server, wherever it is put."""

    async def ask() -> list[int]:
        engine = ScriptedEngine()
        app = make_app(served(engine), ServerSettings(api_keys=("key",)))
        transport = httpx.ASGITransport(app, root_path="/llm")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = [await client.get(path), await client.get(path, headers={"authorization": "Bearer key"})]
        engine.close()
        return [response.status_code for response in found]

    assert asyncio.run(ask()) == [without_key, with_key]


def test_names_that_a_server_takes() -> None:
    """They depend on the address that a name has, not on how the operator writes it."""
    local, loopback = ("localhost", "127.0.0.1", "[::1]"), "127.0.0.1"
    assert hosts_of("127.0.0.1", loopback, ()) == hosts_of("localhost", loopback, ()) == local
    assert hosts_of("LOCALHOST", loopback, ()) == hosts_of("::1", "::1", ()) == local
    assert hosts_of("127.0.0.1", loopback, ("Chat.example",)) == (*local, "chat.example")
    assert hosts_of("127.0.0.2", "127.0.0.2", ()) == (*local, "127.0.0.2")
    assert hosts_of("127.1", loopback, ()) == (*local, "127.1")
    assert hosts_of("MyMachine", "127.0.1.1", ()) == (*local, "mymachine", "127.0.1.1")
    assert hosts_of("::ffff:127.0.0.1", "::ffff:127.0.0.1", ()) == (*local, "[::ffff:127.0.0.1]")
    assert hosts_of("0.0.0.0", "0.0.0.0", ()) == () and hosts_of("::", "::", ("A.example",)) == ("a.example",)
    assert hosts_of("localhost", "10.0.0.1", ()) == ()
    assert is_loopback("::1") and not is_loopback("::") and not is_loopback("10.0.0.1")


def test_a_key_is_not_in_the_log(live: Live) -> None:
    status(live, authorization="Bearer first-key")
    assert not any("first-key" in line for line in live.lines)
