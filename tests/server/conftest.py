"""A server for the tests of a module, and OpenAI's clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import Live, serving
from openai import OpenAI
from scripted_engine import echo


@pytest.fixture(scope="module")
def module_server() -> Iterator[Live]:
    with serving() as live:
        yield live


@pytest.fixture
def live(module_server: Live) -> Live:
    """The module's server, whose model says what the user said."""
    module_server.engine.script = echo
    module_server.engine.requests.clear()
    module_server.engine.prompts.clear()
    module_server.engine.reused.clear()
    return module_server


@pytest.fixture(scope="module")
def client(module_server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{module_server.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client
