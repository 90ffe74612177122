"""Adapters as models of a server: their names in requests, in responses and in the list of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cli_helpers import invoke
from live_server import MODEL, Live, serving
from openai import OpenAI

ADAPTERS = ("legal", "poems")


@pytest.fixture(scope="module")
def adapted() -> Iterator[Live]:
    with serving(adapters=ADAPTERS) as live:
        yield live


@pytest.fixture(scope="module")
def adapted_client(adapted: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{adapted.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def test_the_model_comes_first(adapted_client: OpenAI) -> None:
    """The page takes the first one."""
    assert [model.id for model in adapted_client.models.list()] == [MODEL, *ADAPTERS]
    assert [adapted_client.models.retrieve(name).id for name in (MODEL, *ADAPTERS)] == [MODEL, *ADAPTERS]


@pytest.mark.parametrize("name", [MODEL, *ADAPTERS])
def test_the_name_chooses_the_adapter(adapted: Live, adapted_client: OpenAI, name: str) -> None:
    """Of each answer, on all paths, and the response has the name."""
    adapted.engine.adapters.clear()
    messages: Any = [{"role": "user", "content": "Hi"}]
    chat = adapted_client.chat.completions.create(model=name, messages=messages, n=2)
    chunks = list(adapted_client.chat.completions.create(model=name, messages=messages, stream=True))
    response = adapted_client.responses.create(model=name, input="Hi")
    completion = adapted_client.completions.create(model=name, prompt=["a", "b"], max_tokens=2)
    assert {chat.model, response.model, completion.model, *(chunk.model for chunk in chunks)} == {name}
    assert adapted.engine.adapters == [None if name == MODEL else name] * 6


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_other_names(adapted: Live, path: str) -> None:
    given = {"messages": [{"role": "user", "content": "Hi"}]}
    body = {"model": "gpt-4", **({"prompt": "a"} if path == "/v1/completions" else given)}
    answer = adapted.post(path, {"model": "gpt-4", "input": "Hi"} if path == "/v1/responses" else body)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert answer.json()["error"]["message"] == f"model: found 'gpt-4', expected one of '{MODEL}', 'legal', 'poems'"
    assert adapted.http.get("/v1/models/gpt-4").status_code == 404


def test_without_adapters_there_is_one_model(live: Live) -> None:
    answer = live.post("/v1/completions", {"model": "legal", "prompt": "a"})
    message = f"model: found 'legal', expected '{MODEL}', the one model of this server"
    assert answer.status_code == 404 and answer.json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--adapter", "legal"), "'legal' is no name and folder, such as mine=adapters/mine"),
        (("--adapter", "=folder"), "'=folder' is no name and folder"),
        (("--adapter", "legal="), "'legal=' is no name and folder"),
        (("--adapter", "a=x", "--adapter", "a=y"), "--adapter a: found it twice, expected different names"),
        (("--adapter", "base=x", "--model-name", "base"), "--adapter base: is the name of the model itself; choose"),
        (("--adapter", "artifact=x"), "--adapter artifact: is the name of the model itself; choose"),
    ],
)
def test_options_that_are_refused(options: tuple[str, ...], message: str) -> None:
    result = invoke("serve", "/nonexistent/artifact", "--port", 0, *options)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.stderr
