"""What curl sends and sees: bytes of the protocol, and everything that a client can do wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live_server import MODEL, Live, serving

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
LIMIT = 100_000  # bytes of a body


@dataclass
class Answer:
    """What curl got."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def error(self) -> dict[str, Any]:
        """The error, which must be in OpenAI's form."""
        value = json.loads(self.body)
        assert set(value) == {"error"} and set(value["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = value["error"]
        return error


def curl(url: str, *options: str, data: bytes | None = None) -> Answer:
    """One request. data: the body, from standard input."""
    command = ["curl", "-sS", "-i", "--max-time", "20", *options, url]
    if data is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    while done.stdout.startswith(b"HTTP/1.1 100"):
        done.stdout = done.stdout.partition(b"\r\n\r\n")[2]
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split()[1]), headers, body.decode())


JSON = ("-H", "Content-Type: application/json")


@pytest.fixture(scope="module")
def module_server() -> Iterator[Live]:
    with serving(max_body=LIMIT, max_new_tokens=1000) as live:
        yield live


def test_an_answer(live: Live) -> None:
    answer = curl(live.url + CHAT, "--json", json.dumps(HI))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "You said: Hi"
    assert answer.headers["x-request-id"].startswith("req_")


def test_the_bytes_of_a_stream(live: Live) -> None:
    answer = curl(live.url + CHAT, "-N", "--json", json.dumps({**HI, "stream": True}))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, end = answer.body.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "You said: Hi"


def test_the_bytes_of_a_response(live: Live) -> None:
    asked = {"model": MODEL, "input": "Hi", "stream": True}
    answer = curl(f"{live.url}/v1/responses", "-N", "--json", json.dumps(asked))
    *events, end = answer.body.split("\n\n")
    assert end == "" and "[DONE]" not in answer.body
    for number, event in enumerate(events):
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}" and value["sequence_number"] == number


def test_health_and_models(live: Live) -> None:
    assert json.loads(curl(f"{live.url}/health").body) == {"status": "ready"}
    assert json.loads(curl(f"{live.url}/v1/models").body)["data"][0]["id"] == MODEL
    missing = curl(f"{live.url}/v1/models/gpt-4").error
    assert (missing["code"], missing["param"]) == ("model_not_found", "model")
    assert "found 'gpt-4', expected 'tiny'" in missing["message"]


def test_the_page(live: Live) -> None:
    page = curl(f"{live.url}/")
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<!doctype html>" in page.body.lower() and page.headers["content-security-policy"]
    script = curl(f"{live.url}/page/api.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8" and "export" in script.body
    for name in ("..%2fapp.py", "missing.js", "%2e%2e/app.py", "index.html/"):
        assert curl(f"{live.url}/page/{name}", "--path-as-is").status == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON (EOF while parsing an object at line 1 column 1); send one JSON object"),
        (b"", "the body is not JSON (EOF while parsing a value at line 1 column 0); send one JSON object"),
        (b'{"model": NaN}', "model: found nan, expected a text; messages: this field is needed"),
        (b"[1]", "the body: found [1], expected an object"),
        (b"[" * 100_000, "recursion limit exceeded"),
        (b'{"model": "tiny", "messages": "\xff\xfe"}', "byte 31 of the body is not UTF-8"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}', "not JSON (unexpected end"),
        (b'{"model": "tiny", "temperature": 1e999, "messages": []}', "temperature: found inf, expected a finite"),
    ],
)  # fmt: skip
def test_what_is_not_json(live: Live, body: bytes, message: str) -> None:
    answer = curl(live.url + CHAT, *JSON, data=body)
    assert answer.status == 400 and message in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"
    live.works()


def chat(**fields: Any) -> dict[str, Any]:
    return {**HI, **fields}


def talk(*messages: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": list(messages)}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def calling(*ids: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"role": "assistant", "tool_calls": [{"id": i, "type": "function", "function": function} for i in ids]}


def result(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "x"}


def schema(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value, **more}}


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        # Fields
        (chat(best_of=2), "best_of", "best_of: this field is not supported; leave it out"),
        (chat(functions=[]), "functions", "functions: this field is not supported; leave it out; use tools"),
        (chat(function_call="auto"), "function_call", "use tool_choice"),
        (chat(web_search_options={}), "web_search_options", "not supported"),
        (chat(audio={"voice": "x"}), "audio", "not supported"),
        (chat(store=True), "store", "found True, expected False; nothing is stored here"),
        (chat(modalities=["audio"]), "modalities[0]", "found 'audio', expected 'text'; this model writes text alone"),
        (chat(reasoning_effort="minimal"), "reasoning_effort", "found 'minimal', expected 'low', 'medium' or 'high'"),
        # Types and ranges
        (chat(temperature="1"), "temperature", "temperature: found '1', expected a number"),
        (chat(temperature=3), "temperature", "found 3, expected 2.0 or less"),
        (chat(top_p=0), "top_p", "found 0, expected a number above 0"),
        (chat(n=0), "n", "n: found 0, expected 1 or more"),
        (chat(n=1.5), "n", "n: found 1.5, expected a whole number"),
        (chat(seed=2**64), "seed", "expected a number below 9223372036854775808"),
        (chat(max_tokens=0), "max_tokens", "found 0, expected 1 or more"),
        (chat(max_tokens=1001), "max_tokens", "max_tokens: found 1001, expected 1000 at most"),
        (chat(stream=1), "stream", "stream: found 1, expected true or false"),
        (chat(stop=["a"] * 5), "stop", "stop: found 5, expected 4 at most"),
        (chat(stop=""), "stop", "stop: found a text of 0 characters, expected 1 to 500"),
        (chat(stop=[1]), "stop[0]", "stop[0]: found 1, expected a text"),
        (chat(stop=5), "stop", "stop: found 5, expected a text, or a list of texts"),
        (chat(logit_bias={"600": 1}), "logit_bias", "logit_bias: found token 600, expected ids of 0 to 599"),
        (chat(logit_bias={"x": 1}), "logit_bias", "logit_bias: found the key 'x', expected the id of a token, such as"),
        (chat(logit_bias={"9" * 5000: 1}), "logit_bias", "logit_bias: found the key '9999"),
        (chat(logit_bias={str(key): 1 for key in range(1025)}), "logit_bias", "expected 1024 items at most"),
        (chat(logit_bias={"1": 101}), "logit_bias.1", "found 101, expected 100.0 or less"),
        (chat(top_logprobs=2), "top_logprobs", "found without logprobs"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs", "found 21, expected 20 or less"),
        (chat(stream_options={"include_usage": True}), "stream_options", "found without stream"),
        (chat(max_tokens=5, max_completion_tokens=6), "max_tokens", "found 5 and max_completion_tokens 6"),
        # Messages
        (talk(), "messages", "messages: found [], expected 1 or more items"),
        (talk("Hi"), "messages[0]", "messages[0]: found 'Hi', expected a message of the role system"),
        (talk({"role": "function", "content": "x"}), "messages[0]", "found 'function', expected a message of the role"),
        (talk({"role": "user"}), "messages[0].content", "messages[0].content: this field is needed"),
        (talk({**user("x"), "name": "B<ob"}), "messages[0].name", "messages[0].name: found 'B<ob', expected a name as"),
        (chat(verbosity="low"), "verbosity", "found 'low', expected 'medium'; say in a message how long"),
        (talk(user(5)), "messages[0].content", "found 5, expected a text, or a list of parts of type text"),
        (talk(user([{"type": "image_url", "image_url": {"url": "data:"}}])), "messages[0].content[0]",
         "messages[0].content[0]: found 'image_url', expected a part of type text; this model reads text alone"),
        (talk(user([{"type": "input_audio", "input_audio": {}}])), "messages[0].content[0]", "found 'input_audio'"),
        (talk(user([{"type": "file", "file": {}}])), "messages[0].content[0]", "found 'file', expected a part of type"),
        (talk(user("x"), {"role": "assistant"}), "messages[1]", "found neither content nor tool_calls"),
        (talk(user("x"), calling("a")), "messages[1].tool_calls", "found no message of the role tool after it for a"),
        (talk(user("x"), calling("a", "b"), result("a"), user("y")), "messages[1].tool_calls", "tool after it for b"),
        (talk(user("x"), calling("a", "a"), result("a")), "messages[1].tool_calls", "found one id of two calls"),
        (talk(user("x"), calling("a"), result("b")), "messages[2].tool_call_id", "found b, expected the id of a call"),
        (talk(user("x"), calling("a"), result("a"), result("a")), "messages[3].tool_call_id", "a second result of a"),
        (talk(result("a")), "messages[0].tool_call_id", "found a, expected the id of a call"),
        (talk(user("x" * 5000)), "messages", "messages: found 5"),
        # Tools and formats
        (chat(tools=[{"type": "web_search"}]), "tools[0].type", "found 'web_search', expected 'function'"),
        (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name", "found 'a b'"),
        (chat(tools=[TOOL, TOOL]), None, "a second time"),
        (chat(tool_choice="required"), "tool_choice", 'tool_choice: found "required" without tools'),
        (chat(tool_choice="any"), "tool_choice", "found 'any', expected 'none', 'auto' or 'required'"),
        (chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}), "tool_choice",
         "tool_choice: found 'g', expected one of f"),
        (chat(response_format={"type": "xml"}), "response_format", "found 'xml', expected an object of the type"),
        (chat(response_format=schema({"type": "nothing"}, strict=True)), "response_format.json_schema.schema",
         "response_format.json_schema.schema: "),
        (chat(response_format=schema({"$ref": "https://example.org/x"})), "response_format.json_schema.schema",
         "response_format.json_schema.schema: "),
        (chat(response_format={"type": "json_schema"}), "response_format.json_schema", "this field is needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_served(live: Live, body: Any, param: str | None, message: str) -> None:
    answer = curl(live.url + CHAT, *JSON, data=json.dumps(body).encode())
    assert answer.status == 400, answer.body
    assert message in answer.error["message"] and answer.error["param"] == param


def test_several_problems_are_told_at_once(live: Live) -> None:
    body = chat(temperature="hot", n=0, foo=1)
    message = curl(live.url + CHAT, *JSON, data=json.dumps(body).encode()).error["message"]
    assert message == (
        "temperature: found 'hot', expected a number; n: found 0, expected 1 or more; "
        "foo: this field is not supported; leave it out"
    )


def test_a_message_too_long_for_the_context(live: Live) -> None:
    error = curl(live.url + CHAT, *JSON, data=json.dumps(talk(user("x" * 5000))).encode()).error
    assert error["code"] == "context_length_exceeded" and "expected fewer than 4000" in error["message"]
    fits = curl(live.url + CHAT, *JSON, data=json.dumps(talk(user("x" * 3000))).encode())
    assert fits.status == 200


def test_another_model(live: Live) -> None:
    answer = curl(live.url + CHAT, *JSON, data=json.dumps({**HI, "model": "gpt-4"}).encode())
    assert answer.status == 404 and answer.error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (("-X", "GET"), 405, "method_not_allowed"),
        (("-d", "{}"), 415, None),
        (("-H", "Content-Type: text/plain", "-d", "{}"), 415, None),
        ((*JSON, "-H", "Content-Encoding: gzip", "-d", "{}"), 415, None),
    ],
)
def test_other_requests(live: Live, options: tuple[str, ...], status: int, code: str | None) -> None:
    answer = curl(live.url + CHAT, *options)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_no_such_path(live: Live) -> None:
    for path in ("/v1/embeddings", "/v1/responses/resp_1", "/docs", "/openapi.json"):
        answer = curl(live.url + path)
        assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest.mark.parametrize("way", ["length", "chunked", "expect"])
def test_a_body_that_is_too_large(live: Live, tmp_path: Path, way: str) -> None:
    """The limit is that of the bytes that come, whatever the headers say."""
    options = {
        "length": ("-H", "Expect:"),
        "chunked": ("-H", "Expect:", "-H", "Transfer-Encoding: chunked"),
        "expect": ("-H", "Expect: 100-continue"),
    }
    answer = curl(live.url + CHAT, *JSON, *options[way], data=b" " * (3 * LIMIT))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert f"expected {LIMIT} at most" in answer.error["message"] and answer.headers["connection"] == "close"
    body = json.dumps(HI).encode()
    at_the_limit = curl(live.url + CHAT, *JSON, *options[way], data=body + b" " * (LIMIT - len(body)))
    assert at_the_limit.status == 200
