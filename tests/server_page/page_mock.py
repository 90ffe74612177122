"""A server that gives the page scripted answers: what a real server cannot be made to do at a chosen moment."""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import gptoss_export

PAGE = Path(gptoss_export.__file__).parent / "server" / "page"
MODEL = "gpt-oss-mock"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PATIENCE = 60  # seconds that a stream and its test wait for each other

# A part of a stream: a chunk, an event that is waited for, "lost" (the connection breaks), "end" (it ends too early).
Part = dict[str, Any] | threading.Event | Literal["lost", "end"]


@dataclass(frozen=True)
class Refusal:
    """An answer with an HTTP error: a body in OpenAI's form, or a text."""

    status: int
    body: dict[str, Any] | str
    headers: dict[str, str]


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    authorization: str | None
    body: dict[str, Any]


@dataclass
class Mock:
    """What the server does next, and what it was asked."""

    url: str = ""
    api_key: str | None = None
    metrics: str = ""
    received: list[Received] = field(default_factory=list)
    answers: deque[Sequence[Part] | Refusal] = field(default_factory=deque)
    client_gone: threading.Event = field(default_factory=threading.Event)

    def will(self, *parts: Part) -> None:
        """The answer to the next request that has none yet is this stream."""
        self.answers.append(parts)

    def will_refuse(self, status: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None) -> None:
        """The answer to the next request that has none yet is this error."""
        self.answers.append(Refusal(status, body, headers or {}))

    def chats(self) -> list[dict[str, Any]]:
        """The bodies of all requests for an answer."""
        return [received.body for received in self.received if received.path == "/v1/chat/completions"]


def says(text: str) -> dict[str, Any]:
    return chunk({"content": text})


def thinks(text: str) -> dict[str, Any]:
    return chunk({"reasoning_content": text, "reasoning": text})


def calls(index: int, name: str, arguments: str, call: str | None = None) -> dict[str, Any]:
    """A part of a tool call; `call` is its id, in its first part."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return chunk({"tool_calls": [{"index": index, "function": function} | ({"id": call} if call else {})]})


def finishes(reason: str = "stop", tokens: int = 9) -> dict[str, Any]:
    """The last chunk of the answer. The chunk with the usage follows it."""
    return chunk({}, reason) | {
        "usage_after": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    }


def refuses(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock: Mock

    def log_message(self, *args: object) -> None:
        """Nothing: the tests say what they saw."""

    def do_GET(self) -> None:
        self.note({})
        if self.path == "/":
            self.file("index.html")
        elif self.path.startswith("/page/") and (PAGE / Path(self.path).name).is_file():
            self.file(Path(self.path).name)
        elif self.path == "/metrics":
            self.answer(200, self.mock.metrics.encode(), "text/plain")
        elif self.path == "/v1/models" and self.may():
            model = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self.answer(200, json.dumps(model).encode(), "application/json")
        elif self.path != "/v1/models":
            self.answer(404, b"not found", "text/plain")

    def do_POST(self) -> None:
        self.note(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if not self.may():
            return
        answer = self.mock.answers.popleft()
        if isinstance(answer, Refusal):
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            self.answer(answer.status, text.encode(), "application/json", answer.headers)
        else:
            self.stream(answer)

    def note(self, body: dict[str, Any]) -> None:
        self.mock.received.append(Received(self.command, self.path, self.headers["Authorization"], body))

    def may(self) -> bool:
        key = self.mock.api_key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        problem = refuses("Incorrect API key." if self.headers["Authorization"] else "This server wants an API key.")
        self.answer(401, json.dumps(problem).encode(), "application/json")
        return False

    def file(self, name: str) -> None:
        path = PAGE / name
        self.answer(200, path.read_bytes(), TYPES[path.suffix])

    def answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, parts: Sequence[Part]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            self.parts(parts)
        except OSError:
            self.mock.client_gone.set()

    def parts(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if isinstance(part, threading.Event):
                if not self.waited(part):
                    return
            elif part == "lost":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            elif part == "end":
                self.wfile.write(b"0\r\n\r\n")
                return
            else:
                usage = part.get("usage_after")
                self.event(json.dumps({key: value for key, value in part.items() if key != "usage_after"}))
                if usage:
                    self.event(json.dumps({**chunk({}), "choices": [], "usage": usage}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        sent = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")

    def waited(self, event: threading.Event) -> bool:
        """Whether the event came before the client went away."""
        for _ in range(PATIENCE * 50):
            if event.wait(0.02):
                return True
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                self.mock.client_gone.set()
                return False
        return False


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error. Anything else is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Mock]:
    """The mock on a free port of this machine."""
    mock = Mock()
    handler = type("MockHandler", (Handler,), {"mock": mock})
    server = Server(("127.0.0.1", 0), handler)
    mock.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield mock
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
