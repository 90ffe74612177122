"""What becomes of a request whose replica answers, dies, or says nothing: with replicas that a test scripts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")

from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from gptoss_export.replicas import forwarding
from gptoss_export.replicas.calls import ALIVE, Call, Part
from gptoss_export.replicas.forwarding import Forwarding
from gptoss_export.replicas.ingress_figures import IngressFigures
from gptoss_export.replicas.options import Patience, ReplicaOptions
from gptoss_export.server.admission import Admission
from gptoss_export.server.errors import ApiError
from gptoss_export.server.settings import ServerSettings

STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"req_1"))
JSON = ((b"content-type", b"application/json"), (b"content-length", b"2"))
CHAT = Call("POST", "/v1/chat/completions", body=b"{}")
RESPONSES = Call("POST", "/v1/responses", body=b"{}")
TAKEN = Part(replica="one")
NOTHING = object()  # the replica says nothing more
Step = Part | BaseException | object


class Scripted(DeploymentResponseGenerator):
    """A replica's response: parts, errors, and silence."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = iter(steps)
        self.ended = self.was_cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        step = next(self._steps, None)
        if step is None:
            raise StopAsyncIteration
        if step is NOTHING:
            await asyncio.sleep(1000)
        if isinstance(step, BaseException):
            raise step
        return step

    def cancel(self) -> None:
        self.was_cancelled = True


@dataclass
class Replicas:
    """A handle of replicas, of which each call gets the next script."""

    scripts: list[Sequence[Step]]
    calls: list[Call] = field(default_factory=list)
    responses: list[Scripted] = field(default_factory=list)

    def options(self, *, method_name: str, stream: bool) -> Replicas:
        """As Serve's handle."""
        assert (method_name, stream) == ("answer", True)
        return self

    def remote(self, call: Call) -> Scripted:
        """As Serve's handle."""
        self.calls.append(call)
        self.responses.append(Scripted(self.scripts[len(self.responses)]))
        return self.responses[-1]


@dataclass
class Outcome:
    """What the client got, or the error that it gets."""

    replicas: Replicas
    messages: list[Any]
    error: ApiError | None
    figures: dict[str, str]

    @property
    def status(self) -> int:
        """Of HTTP."""
        assert self.error is None
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of the response."""
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        """All of it. Fails unless it has an end."""
        assert [message.get("more_body") for message in self.messages[1:]][-1] is False
        return b"".join(message["body"] for message in self.messages[1:])


def forwarded(*scripts: Sequence[Step], call: Call = CHAT, **seconds: float) -> Outcome:
    """Forward a call to replicas that do what the scripts say, the first one for the first attempt."""
    patience = Patience(beat=0.01, silence=seconds.pop("silence", 5.0))
    settings = replace(ServerSettings(), **seconds)  # type: ignore[arg-type]
    replicas, messages = Replicas(list(scripts)), []

    async def send(message: Any) -> None:
        messages.append(message)

    async def run() -> Outcome:
        admission = Admission(settings)
        figures = IngressFigures(admission)
        options = ReplicaOptions(Path("artifact"), "m", settings=settings, patience=patience)
        forwarding = Forwarding(replicas, options, figures)  # type: ignore[arg-type]
        error = None
        try:
            async with asyncio.timeout(20), admission.admitted() as admitted:
                await forwarding.forward(call, send, admitted)
        except ApiError as raised:
            error = raised
        assert admission.running == 0
        lines = (line.split() for line in figures.text([]).decode().splitlines())
        return Outcome(replicas, messages, error, {words[0]: words[1] for words in lines})

    return asyncio.run(run())


def test_a_stream_is_passed_on() -> None:
    found = forwarded(
        [TAKEN, ALIVE, Part(200, STREAM, b"one "), ALIVE, Part(body=b"two "), Part(body=b"three", last=True)]
    )
    assert (found.status, found.body) == (200, b"one two three")
    assert found.headers[b"x-gptoss-replica"] == b"one"
    assert found.headers[b"x-gptoss-request"] == b"req_1"
    assert b"x-request-id" not in found.headers
    assert [message["body"] for message in found.messages[1:]] == [b"one ", b"two ", b"three"]
    assert not found.replicas.responses[0].was_cancelled


def test_a_whole_response_is_passed_on_when_it_is_complete() -> None:
    found = forwarded([TAKEN, Part(404, JSON, b"{"), Part(body=b"}", last=True)])
    assert (found.status, found.body) == (404, b"{}")
    assert len(found.messages) == 2


DIED = [
    pytest.param([ActorDiedError()], id="before it took the request"),
    pytest.param([TAKEN, ActorDiedError()], id="before its first part"),
    pytest.param([TAKEN, Part(200, JSON, b"{"), ActorDiedError()], id="in the middle of a response that is no stream"),
    pytest.param([TAKEN, NOTHING], id="it says nothing more"),
    pytest.param([TAKEN, asyncio.CancelledError()], id="it is shut down"),
    pytest.param([TAKEN], id="without an end"),
]


@pytest.mark.parametrize("script", DIED)
def test_another_replica_is_asked(script: list[Step]) -> None:
    found = forwarded(script, [Part(replica="two"), Part(200, JSON, b"{}", True)], silence=0.2)
    assert (found.status, found.body) == (200, b"{}")
    assert found.headers[b"x-gptoss-replica"] == b"two"
    assert found.replicas.responses[0].was_cancelled
    lost = "one" if script[0] == TAKEN else ""
    assert [call.avoided for call in found.replicas.calls] == [(), (lost,)]
    assert found.figures["gptoss_ingress_asked_again_total"] == "1.0"
    assert found.figures["gptoss_ingress_lost_total"] == "0.0"


@pytest.mark.parametrize("script", DIED)
def test_once(script: list[Step]) -> None:
    found = forwarded(script, script, silence=0.2)
    assert found.error is not None and not found.messages
    assert (found.error.status, found.error.code, found.error.kind) == (503, "replica_lost", "server_error")
    assert found.error.message == "the replicas that were asked have ended; send the request again"
    assert found.figures["gptoss_ingress_lost_total"] == "1.0"


BROKEN = [ActorDiedError(), NOTHING, asyncio.CancelledError(), DeploymentUnavailableError("Replica")]


@pytest.mark.parametrize("problem", BROKEN, ids=lambda problem: type(problem).__name__)
def test_a_stream_that_has_begun_ends_with_an_error(problem: Step) -> None:
    found = forwarded([TAKEN, Part(200, STREAM, b"data: {}\n\n"), problem], silence=0.2)
    begins, error, done, rest = found.body.split(b"\n\n")
    assert (begins, done, rest) == (b"data: {}", b"data: [DONE]", b"")
    told = json.loads(error.removeprefix(b"data: "))["error"]
    assert told == {
        "message": "the replica that generated this answer has ended; send the request again",
        "type": "server_error",
        "param": None,
        "code": "replica_lost",
    }
    assert len(found.replicas.responses) == 1
    assert found.figures["gptoss_ingress_lost_total"] == "1.0"


def test_the_events_of_a_response_go_on_with_their_numbers() -> None:
    events = (
        b'event: a\ndata: {"type":"a","sequence_number":40}\n\nevent: b\ndata: {"type":"b","sequence_number":41}\n\n'
    )
    said = b'event: c\ndata: {"type":"c","sequence_number":42,"delta":"\\"sequence_number\\":7"}\n\n'
    found = forwarded([TAKEN, Part(200, STREAM, events), Part(body=said), ActorDiedError()], call=RESPONSES)
    name, data = found.body.removeprefix(events + said).decode().strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error",
        "sequence_number": 43,
        "code": "replica_lost",
        "message": "the replica that generated this answer has ended; send the request again",
        "param": None,
    }


@pytest.mark.parametrize(
    ("seconds", "attempts"), [({"silence": 0.1, "queue_seconds": 0.35}, 4), ({"silence": 9, "queue_seconds": 0.2}, 1)]
)
def test_no_replica_takes_it(seconds: dict[str, float], attempts: int) -> None:
    found = forwarded(*[[NOTHING]] * 9, **seconds)
    assert found.error is not None
    assert (found.error.status, found.error.code) == (503, "queue_timeout")
    assert len(found.replicas.responses) == attempts
    assert all(response.was_cancelled for response in found.replicas.responses)


def test_a_request_has_an_end() -> None:
    alive: list[Step] = [TAKEN, *[NOTHING]]
    found = forwarded(alive, request_seconds=0.2)
    assert found.error is not None
    assert (found.error.status, found.error.code) == (504, "timeout")
    assert found.replicas.responses[0].was_cancelled
    found = forwarded([TAKEN, Part(200, STREAM, b"data: {}\n\n"), NOTHING], request_seconds=0.2)
    assert b'"code":"timeout"' in found.body


def test_the_beginning_of_a_prompt_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests go on while a long body is looked at."""
    known = ((256, b"digest"),)
    turns = 0

    def slow(body: bytes) -> tuple[tuple[int, bytes], ...]:
        before = turns
        time.sleep(0.5)
        assert turns > before + 5
        return known

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    real = Forwarding.forward

    async def beside_another(self: Forwarding, *arguments: Any) -> None:
        task = asyncio.create_task(other())
        await real(self, *arguments)
        task.cancel()

    monkeypatch.setattr(forwarding, "beginnings", slow)
    monkeypatch.setattr(Forwarding, "forward", beside_another)
    found = forwarded([TAKEN, Part(200, JSON, b"{}", True)])
    assert found.replicas.calls[0].beginnings == known


def test_a_replica_with_a_bug() -> None:
    error = RayTaskError("answer", "traceback", ValueError("a secret"))
    found = forwarded([TAKEN, error])
    assert found.error is not None
    assert (found.error.status, "secret" in found.error.message) == (500, False)
    assert len(found.replicas.responses) == 1


def test_a_client_that_goes_away_ends_its_request() -> None:
    replicas = Replicas([[TAKEN, Part(200, STREAM, b"data: {}\n\n"), NOTHING]])
    begun = asyncio.Event()

    async def send(message: Any) -> None:
        begun.set()

    async def run(settings: ServerSettings = ServerSettings()) -> None:  # noqa: B008
        admission = Admission(settings)
        options = ReplicaOptions(Path("artifact"), "m")
        forwarding = Forwarding(replicas, options, IngressFigures(admission))  # type: ignore[arg-type]
        async with admission.admitted() as admitted:
            task = asyncio.create_task(forwarding.forward(CHAT, send, admitted))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert replicas.responses[0].was_cancelled
        assert admission.running == 0

    asyncio.run(run())
