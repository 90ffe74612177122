"""The loop of openai-agents on the server: a tool is called, its result is answered, over both of OpenAI's APIs."""

from __future__ import annotations

import asyncio
import json

import pytest
from live_server import MODEL, Live
from openai import AsyncOpenAI
from scripted_engine import answer, call, said

agents = pytest.importorskip("agents", reason="the tests of an agent need openai-agents")


@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_an_agent(live: Live, api: str, streamed: bool) -> None:
    """The model asks for the weather of two places, one after the other, and repeats what the tool said."""
    agents.set_tracing_disabled(True)
    asked: list[str] = []

    @agents.function_tool  # type: ignore[untyped-decorator]
    def get_weather(place: str) -> str:
        """The weather of a place."""
        asked.append(place)
        return f"rain in {place}"

    def script(prompt: str) -> str:
        results = prompt.count("<|start|>functions.get_weather to=assistant")
        if results < 2:
            return call("get_weather", json.dumps({"place": ["Paris", "Rome"][results]}), f"Place {results}.")
        return answer(f"{said(prompt)} " + " and ".join(place for place in asked if f"rain in {place}" in prompt))

    live.engine.script = script

    async def run() -> str:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0) as client:
            kind = agents.OpenAIResponsesModel if api == "responses" else agents.OpenAIChatCompletionsModel
            agent = agents.Agent(
                name="Forecaster", instructions="Use the tool.", tools=[get_weather], model=kind(MODEL, client)
            )
            if not streamed:
                return str((await agents.Runner.run(agent, "Where does it rain?")).final_output)
            result = agents.Runner.run_streamed(agent, "Where does it rain?")
            async for _ in result.stream_events():
                pass
            return str(result.final_output)

    assert asyncio.run(run()) == "Where does it rain? Paris and Rome"
    assert asked == ["Paris", "Rome"]
