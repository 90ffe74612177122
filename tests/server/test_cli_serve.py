"""The options of `gptoss-export serve`: what is refused before an artifact is opened."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cli_helpers import invoke

from gptoss_export.server import settings
from gptoss_export.server.settings import ServerSettings

NOWHERE = Path("/nonexistent/artifact")


def refused(*arguments: object) -> str:
    """The error of a command that cannot begin."""
    result = invoke("serve", NOWHERE, "--port", 0, *arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTOSS_EXPORT_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no key, expected one a line"),
        ("\n \n", "holds no key, expected one a line"),
        ("good\nwith space\n", "line 2: expected printable characters of ASCII without spaces"),
        ("schlüssel\n", "line 1: expected printable characters of ASCII without spaces"),
    ],
)
def test_files_of_keys(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    error = refused("--api-key-file", path)
    assert f"--api-key-file {path}" in error and message in error and "with space" not in error


def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty one would look like a server that asks for a key."""
    monkeypatch.setenv("GPTOSS_EXPORT_API_KEY", "")
    assert "GPTOSS_EXPORT_API_KEY: expected printable characters of ASCII without spaces" in refused()
    assert f"--api-key-file {tmp_path / 'missing'}: cannot be read" in refused("--api-key-file", tmp_path / "missing")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--allow-origin", "example.org", "--allow-origin example.org: expected a scheme and a name"),
        ("--allow-origin", "https://example.org/", "expected a scheme and a name, such as https://example.org, or *"),
        ("--allow-origin", "https://Example.org", "https://Example.org: expected https://example.org, as"),
        ("--allow-origin", "HTTP://example.org:80", "expected http://example.org, as browsers send it"),
        ("--allow-origin", "https://example.org:443", "expected https://example.org, as browsers send it"),
        ("--allow-origin", "https://me@example.org", "expected a scheme and a name"),
        ("--allow-origin", "https://bücher.example", "expected a scheme and a name"),
        ("--allow-host", "example.org:8000", "--allow-host example.org:8000: expected a name without a port"),
        ("--host", "nowhere.invalid", "--host nowhere.invalid: "),
        ("--port", "70000", "70000 is not in the range"),
        ("--queue-seconds", "0", "0.0 is not in the range"),
        ("--max-body", "much", "no amount of memory"),
        ("--max-requests", "0", "0 is not in the range"),
    ],
)
def test_values_that_cannot_be_used(option: str, value: str, message: str) -> None:
    assert message in refused(option, value)


@pytest.mark.parametrize(
    "origin",
    ["*", "https://example.org", "http://example.org:443", "http://[::1]:3000", "chrome-extension://abcdefgh"],
)
def test_origins_as_browsers_send_them(origin: str) -> None:
    assert f"{NOWHERE}: not a folder" in refused("--allow-origin", origin)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "LOCALHOST", "127.0.0.2"])
def test_an_address_that_only_this_machine_reaches(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is written, the server takes only names of this machine."""
    seen: list[tuple[str, ...]] = []

    def noted(hosts: tuple[str, ...], **others: object) -> ServerSettings:
        seen.append(hosts)
        return ServerSettings(hosts=hosts)

    monkeypatch.setattr(settings, "ServerSettings", noted)
    assert "note:" not in refused("--host", host)
    assert {*settings.LOCALHOST, host.lower()} <= set(seen[0])


def test_the_address_is_taken_before_the_artifact_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = invoke("serve", NOWHERE, "--port", port)
    assert result.exit_code == 2 and f"--host 127.0.0.1 --port {port}: cannot be had" in result.stderr
    assert "another --port (0: any free one)" in result.stderr
    assert f"{NOWHERE}: not a folder" in refused()


def test_a_server_that_others_reach_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "note: anybody who reaches 0.0.0.0 can use the model; --api-key-file asks for a key" in refused(
        "--host", "0.0.0.0"
    )
    monkeypatch.setenv("GPTOSS_EXPORT_API_KEY", "key")
    assert "note:" not in refused("--host", "0.0.0.0")
