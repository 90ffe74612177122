"""What an operator can choose, and what is refused before anything is started."""

from __future__ import annotations

import runpy
import socket
import sys
from pathlib import Path

import pytest

from gptoss_export.errors import ArtifactError, UsageError
from gptoss_export.replicas import running
from gptoss_export.replicas.artifact_check import check_gpus, checked, gpus
from gptoss_export.replicas.cluster import Place
from gptoss_export.replicas.options import Patience, ReplicaOptions
from gptoss_export.replicas.running import reason, run
from gptoss_export.server.api_keys import KEY_VARIABLE
from gptoss_export.server.settings import LOCALHOST, ServerSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"


def test_all_numbers_that_cannot_be_are_named() -> None:
    with pytest.raises(UsageError) as error:
        ReplicaOptions(Path("artifact"), "m", replicas=0, gpus=-1, cpus=-0.5, ingresses=0, parts=0)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  - replicas: found 0, expected 1 or more",
        "  - ingresses: found 0, expected 1 or more",
        "  - parts: found 0, expected 1 or more",
        "  - gpus: found -1, expected 0 or more",
        "  - cpus: found -0.5, expected 0 or more",
    ]


def test_a_step_may_take_longer_without_a_gpu() -> None:
    assert Patience().longest_step("cuda") < Patience().longest_step("cpu")
    assert Patience(step=3).longest_step("cpu") == 3


def test_the_reason_in_what_serve_says() -> None:
    said = "Traceback:\n  File x\nValueError: no\n\ngptoss_export.errors.ArtifactError: a/b: damaged:\n  - a file\n"
    assert reason(["", "Traceback:\nValueError: no", said]) == "a/b: damaged:\n  - a file"
    assert reason(["it waits", "RuntimeError: out of memory"]) is None


def test_too_few_gpus() -> None:
    check_gpus(2, 1.0, 2.0)
    check_gpus(8, 0.0, 0.0)
    with pytest.raises(UsageError, match=r"^3 replicas need 3 GPUs, and the cluster has 2; start fewer replicas"):
        check_gpus(3, 1.0, 2.0)


def test_an_address_in_use_is_found_out_first(endless: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: cannot be had"):
            run(ReplicaOptions(endless, "m"), Place(port=port), print)


def test_replicas_of_the_artifact(endless: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")
    from gptoss_export.replicas.application import Arguments, app

    options = ReplicaOptions(endless, "m")
    assert gpus(options, checked(options)) == 0
    assert gpus(ReplicaOptions(endless, "m", gpus=0.5), checked(options)) == 0.5
    assert app(Arguments(artifact=endless, replicas=3)) is not None


@pytest.mark.parametrize(
    ("key", "hosts", "expected"),
    [
        (None, None, LOCALHOST),
        ("key", None, ()),
        (None, "*", ()),
        ("key", "Example.org,10.0.0.1", ("example.org", "10.0.0.1")),
        ("key", "a.example, b.example ", ("a.example", "b.example")),
    ],
)
def test_names_of_the_server(
    endless: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, hosts: str | None, expected: tuple[str, ...]
) -> None:
    """Without a key, the server takes only names of this machine, unless it is told others."""
    pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")
    from gptoss_export.replicas import application
    from gptoss_export.replicas.application import Arguments

    seen: list[ReplicaOptions] = []
    monkeypatch.setattr(application, "application", seen.append)
    monkeypatch.delenv("GPTOSS_EXPORT_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("GPTOSS_EXPORT_API_KEY", key)
    application.app(Arguments(artifact=endless, hosts=hosts))
    assert seen[0].settings.hosts == expected
    assert seen[0].settings.api_keys == ((key,) if key else ())
    assert seen[0].name == endless.name


@pytest.mark.parametrize("key", ["", "key\n", "two words"])
def test_a_key_that_no_client_can_send(endless: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """It would leave the server open, or closed to everybody."""
    pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")
    from gptoss_export.replicas.application import Arguments, app

    monkeypatch.setenv(KEY_VARIABLE, key)
    message = f"{KEY_VARIABLE}: expected printable characters of ASCII without spaces"
    with pytest.raises(UsageError, match=message):
        app(Arguments(artifact=endless))
    assert message in example(monkeypatch, endless)


@pytest.mark.parametrize("hosts", ["a.example:8000", "a.example,,b.example", "http://a.example"])
def test_names_that_no_request_has(endless: Path, hosts: str) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")
    from gptoss_export.replicas.application import Arguments, app

    with pytest.raises(UsageError, match=r"hosts .*: expected a name without a port"):
        app(Arguments(artifact=endless, hosts=hosts))


def example(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The error with which the example ends."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return str(ended.value.code)


def test_what_the_example_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "--allow-origin https://Example.org: expected https://example.org, as browsers send it"
    assert refused in example(monkeypatch, tmp_path, "--allow-origin", "https://Example.org")
    assert "--allow-host a:1: expected a name" in example(monkeypatch, tmp_path, "--allow-host", "a:1")


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("127.1", (), (*LOCALHOST, "127.1")),
        ("LOCALHOST", ("A.example",), (*LOCALHOST, "a.example")),
        ("0.0.0.0", (), ()),
    ],
)
def test_names_at_an_address(
    endless: Path, monkeypatch: pytest.MonkeyPatch, host: str, allowed: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """Whether only this machine reaches it depends on what it is, not on how it is written."""
    seen: list[tuple[ReplicaOptions, Place]] = []

    def joined(options: ReplicaOptions, place: Place) -> None:
        seen.append((options, place))
        raise RuntimeError("no cluster")

    monkeypatch.setattr(running, "joined", joined)
    with pytest.raises(RuntimeError, match="no cluster"):
        run(ReplicaOptions(endless, "m", settings=ServerSettings(hosts=allowed)), Place(host, 0), print)
    ((options, place),) = seen
    assert options.settings.hosts == expected
    assert place.host == ("127.0.0.1" if expected else "0.0.0.0") and place.port > 0


def test_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a folder"):
        run(ReplicaOptions(tmp_path / "nothing", "m"), Place(), print)
    pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")
    from gptoss_export.replicas.application import Arguments, app

    with pytest.raises(ArtifactError, match="not a folder"):
        app(Arguments(artifact=tmp_path / "nothing"))
    with pytest.raises(ValueError, match="replica"):
        Arguments.model_validate({"artifact": tmp_path, "replica": 2})
