"""Does OpenAI's agents' SDK, which asks /v1/responses by default, work as it does with OpenAI?"""

from __future__ import annotations

from typing import Any

import agents
import openai
import pytest
from pydantic import BaseModel
from scripted import CALL, script

MODEL = "smollm2-135m-instruct"


@pytest.fixture
def agent_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An agent of OpenAI's SDK, as its quickstart makes one; traces go nowhere."""
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")

    def make(client: openai.AsyncOpenAI, **rest: Any) -> agents.Agent[None]:
        agents.set_tracing_disabled(True)
        agents.set_default_openai_client(client, use_for_tracing=False)
        return agents.Agent(name="Guide", instructions="Help travellers.", model=MODEL, **rest)

    return make


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_calls_its_tool_and_answers(talking: Any, gated: Any, agent_of: Any, stream: bool) -> None:
    asked: list[str] = []

    @agents.function_tool
    def weather(city: str) -> str:
        """Weather of a city."""
        asked.append(city)
        return f"Rain in {city}"

    async with talking(speculation="off", max_context_tokens=2048, kv_cache_tokens=8192) as (client, running):
        agent = agent_of(client, tools=[weather])
        script(running, gated, f"{CALL % 'Oslo'}\n{CALL % 'Rome'}", "Rain in both.")
        if stream:
            run = agents.Runner.run_streamed(agent, "Weather in Oslo and Rome?")
            deltas = [
                event.data.delta
                async for event in run.stream_events()
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
            ]
            assert "".join(deltas) == "Rain in both."
        else:
            run = await agents.Runner.run(agent, "Weather in Oslo and Rome?")
    assert sorted(asked) == ["Oslo", "Rome"]
    assert run.final_output == "Rain in both."
    usage = run.context_wrapper.usage
    assert (usage.requests, usage.output_tokens > 20) == (2, True)
    assert usage.input_tokens_details.cached_tokens > 100, "the second turn finds the first"


async def test_an_agent_answers_in_its_type_and_hands_over(talking: Any, gated: Any, agent_of: Any) -> None:
    class Trip(BaseModel):
        city: str
        days: int

    async with talking(speculation="off", max_context_tokens=2048, kv_cache_tokens=8192) as (client, running):
        planner = agents.Agent(name="Planner", instructions="Plan.", model=MODEL, output_type=Trip)
        agent = agent_of(client, handoffs=[planner])
        handoff = '<tool_call>\n{"name": "transfer_to_planner", "arguments": {}}\n</tool_call>'
        script(running, gated, handoff, '{"city": "Oslo", "days": 3}')
        run = await agents.Runner.run(agent, "Plan three days in Oslo")
    assert run.final_output == Trip(city="Oslo", days=3)
    assert run.last_agent is planner
