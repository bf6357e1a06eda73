"""Does /v1/responses, asked by OpenAI's own client and its agents' SDK, say what /v1/chat/completions says?"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from typing import Any

import agents
import httpx
import openai
import pytest
from berth_worker.engine.request import InvalidRequestError
from berth_worker.server.openai_request import read_chat
from berth_worker.server.responses_request import read_response
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "weather", "description": "Of a city", "parameters": CITY}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def as_chat(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def script(running: Any, gated: Any, *answers: str) -> None:
    """Let the model say these answers, one request after the other; without drafts."""
    encode = running.engine.tokenizer.encode
    left = itertools.chain.from_iterable([*encode(answer), 2] for answer in answers)

    def say(logits: Any) -> Any:
        logits = logits.clone()
        if len(logits):  # none are computed where a prompt goes on
            logits[-1, next(left)] = 1000.0
        return logits

    gated.fault = say


async def streamed(running: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Events as they are on the wire, checked against OpenAI's types, not only read into them."""
    events = []
    async with running.http.stream("POST", "/v1/responses", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = None
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line:
                events.append(json.loads(line.removeprefix("data: ")))
                assert EVENT.validate_python(events[-1]).type == kind
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def told(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that a stream's events tell of, put together from the pieces alone."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if "item_id" in event:
            assert (event["output_index"], event["item_id"]) == (len(items) - 1, items[-1]["id"])
        if kind == "output_item.added":
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
        elif kind == "content_part.added":
            items[-1]["content"].append(event["part"])
        elif kind == "output_text.delta":
            items[-1]["content"][event["content_index"]]["text"] += event["delta"]
            items[-1]["content"][event["content_index"]]["logprobs"] += event["logprobs"]
        elif kind == "function_call_arguments.delta":
            items[-1]["arguments"] += event["delta"]
        elif kind == "output_text.done":
            part = items[-1]["content"][event["content_index"]]
            assert (event["text"], event["logprobs"]) == (part["text"], part["logprobs"])
        elif kind == "content_part.done":
            assert event["part"] == items[-1]["content"][event["content_index"]]
        elif kind == "function_call_arguments.done":
            assert (event["name"], event["arguments"]) == (items[-1]["name"], items[-1]["arguments"])
        elif kind == "output_item.done":
            items[-1]["status"] = event["item"]["status"]
            assert event["item"] == items[-1]
    return items


def unnamed(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


# -- the same answer -------------------------------------------------------------------------------------------------


async def test_an_answer_is_a_chats_in_one_and_in_events(talking: Any) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    asked = {"input": QUESTION, "instructions": "Be brief.", "metadata": {"turn": "1"}, **GREEDY}
    async with talking() as (client, running):
        chat = await client.chat.completions.create(messages=messages, model=MODEL, temperature=0, max_tokens=24)
        whole = await client.responses.create(**asked)
        events = await streamed(running, asked)
        raw = (await running.http.post("/v1/responses", json=asked)).json()
    assert "Paris" in chat.choices[0].message.content
    assert whole.output_text == chat.choices[0].message.content
    assert (whole.status, whole.instructions, whole.metadata) == ("completed", "Be brief.", {"turn": "1"})
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    assert whole.usage.input_tokens_details.cached_tokens == chat.usage.prompt_tokens // 16 * 16
    assert whole.id == f"resp_{whole._request_id}"
    Response.model_validate(raw)

    assert [event["type"] for event in events if not event["type"].endswith("output_text.delta")] == [
        f"response.{kind}"
        for kind in (
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *("output_text.done", "content_part.done", "output_item.done", "completed"),
        )
    ]
    assert len(events) > 11
    (item,) = told(events)
    assert item == events[-1]["response"]["output"][0]
    assert [unnamed(item)] == [unnamed(said) for said in raw["output"]]
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"
    ended = events[-1]["response"]
    for name in set(raw) - {"id", "created_at", "completed_at", "output"}:
        assert ended[name] == raw[name], name


async def test_an_answer_that_is_cut_is_incomplete(talking: Any) -> None:
    asked = {"input": QUESTION, **GREEDY, "max_output_tokens": 3}
    async with talking() as (client, running):
        whole = await client.responses.create(**asked)
        events = await streamed(running, asked)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (whole.output[0].status, whole.usage.output_tokens) == ("incomplete", 3)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told(events)[0]["content"][0]["text"] == whole.output_text


async def test_an_answer_that_says_nothing_is_a_message_without_text(talking: Any, gated: Any) -> None:
    async with talking(speculation="off") as (client, running):
        script(running, gated, "", "")
        whole = await client.responses.create(input=QUESTION, model=MODEL)
        events = await streamed(running, {"input": QUESTION})
    assert (whole.status, whole.output_text, len(whole.output)) == ("completed", "", 1)
    assert [unnamed(item) for item in told(events)] == [
        unnamed(item.model_dump(exclude_none=True)) for item in whole.output
    ]


async def test_logprobs_are_a_chats(talking: Any) -> None:
    chat_asked: dict[str, Any] = {
        "logprobs": True,
        "top_logprobs": 2,
        "model": MODEL,
        "temperature": 0,
        "max_tokens": 24,
    }
    async with talking() as (client, running):
        chat = await client.chat.completions.create(messages=[{"role": "user", "content": QUESTION}], **chat_asked)
        asked = {"input": QUESTION, "include": ["message.output_text.logprobs"], "top_logprobs": 2, **GREEDY}
        whole = await client.responses.create(**asked)
        (item,) = told(await streamed(running, asked))
    said = [place.model_dump() for place in chat.choices[0].logprobs.content]
    assert [place.model_dump() for place in whole.output[0].content[0].logprobs] == said
    assert item["content"][0]["logprobs"] == said


async def test_text_keeps_to_its_format(talking: Any) -> None:
    class Capital(BaseModel):
        city: str
        sure: bool

    async with talking(max_context_tokens=1024) as (client, _):
        parsed = await client.responses.parse(input=QUESTION, text_format=Capital, **GREEDY | {"max_output_tokens": 60})
        loose = await client.responses.create(
            input="Give me JSON", text={"format": {"type": "json_object"}}, **GREEDY | {"max_output_tokens": 60}
        )
    assert isinstance(parsed.output_parsed, Capital)
    assert parsed.text.format.name == "Capital"
    assert loose.output_text.lstrip().startswith("{")


# -- items -----------------------------------------------------------------------------------------------------------


def test_items_become_the_messages_of_a_chat() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    said = [{"type": "output_text", "text": "Well,", "annotations": []}, {"type": "refusal", "refusal": "no."}]
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": parts},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": said},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        {"type": "function_call", "call_id": "c3", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c3", "output": ""},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks"},
    ]

    def call(name: str, arguments: str = "{}") -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "weather", "arguments": arguments}}

    chat = [
        {"role": "system", "content": "Help."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "Well,\nno.", "tool_calls": [call("c1"), call("c2", '{"city": "Oslo"}')]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
        {"role": "assistant", "content": None, "tool_calls": [call("c3")]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks"},
    ]
    found = read_response({"instructions": "Help.", "input": items, "tools": [WEATHER]})
    meant = read_chat({"messages": chat, "tools": [as_chat(WEATHER)]})
    assert (found.messages, found.tools) == (meant.messages, meant.tools)


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "name": "weather"}])
def test_a_choice_of_tools_is_a_chats(choice: Any) -> None:
    chats = choice if isinstance(choice, str) else {"type": "function", "function": {"name": "weather"}}
    found = read_response({"input": "x", "tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False})
    meant = read_chat(
        {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [as_chat(WEATHER)],
            "tool_choice": chats,
            "parallel_tool_calls": False,
        }
    )
    for name in ("may_call", "must_call", "call", "parallel_calls", "tools", "params", "messages"):
        assert getattr(found, name) == getattr(meant, name)


async def test_a_call_is_streamed_as_it_is_written_between_texts(talking: Any, gated: Any) -> None:
    said = f"Let me see. {CALL % 'Oslo'}{CALL % 'Rome'} Both."
    asked = {"input": "Weather?", "tools": [WEATHER], "model": MODEL}
    async with talking(speculation="off", max_context_tokens=1024) as (client, running):
        script(running, gated, said, said, said)
        whole = await client.responses.create(**asked)
        events = await streamed(running, asked)
        single = await client.responses.create(parallel_tool_calls=False, **asked)
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call", "message"]
    assert [unnamed(item) for item in told(events)] == [
        unnamed(item.model_dump(exclude_none=True, by_alias=True)) for item in whole.output
    ]
    calls = [item for item in whole.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert len({call.call_id for call in calls}) == 2
    assert [event["type"] for event in events].count("response.function_call_arguments.delta") > 5
    assert [item.type for item in single.output].count("function_call") == 1
    assert whole.tools[0].name == "weather"


async def test_a_call_that_is_cut_is_incomplete(talking: Any) -> None:
    asked = {"input": "Oslo?", "tools": [WEATHER], "tool_choice": "required", **GREEDY, "max_output_tokens": 3}
    async with talking(max_context_tokens=1024) as (_, running):
        (call,) = told(events := await streamed(running, asked))
    assert (events[-1]["type"], call["status"], call["name"]) == ("response.incomplete", "incomplete", "weather")
    assert call["arguments"].startswith("{")


async def test_a_turn_that_replays_its_history_finds_it_in_the_cache(talking: Any) -> None:
    async with talking(max_context_tokens=1024) as (client, running):
        first = await client.responses.create(input=QUESTION, prompt_cache_key="agent", store=True, **GREEDY)
        assert running.engine.stats().sessions_retained == 1
        history = [
            {"role": "user", "content": QUESTION},
            *[item.model_dump(exclude_none=True) for item in first.output],
        ]
        again = await client.responses.create(
            input=[*history, {"role": "user", "content": "And of Spain?"}], prompt_cache_key="agent", **GREEDY
        )
    assert again.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 16


# -- refusals and failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", "does not support it"),
        ({"input": "x", "conversation": "conv_1"}, "conversation", "does not support it"),
        ({"input": "x", "background": True}, "background", "does not support it"),
        ({"input": "x", "prompt": {"id": "pmpt_1"}}, "prompt", "does not support it"),
        ({"input": "x", "n": 2}, "n", "does not support it"),
        ({"input": "x", "max_tokens": 5}, "max_tokens", "does not support it"),
        ({"input": "x", "truncation": "most"}, "truncation", "'auto' or 'disabled' is right"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "0 is out of range"),
        ({"input": "x", "max_output_tokens": 1000}, "max_output_tokens", "1000 is out of range; 1 to"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs", "21 is out of range"),
        ({"input": "x", "temperature": "hot"}, "temperature", "a number is right"),
        ({"input": "x", "metadata": []}, "metadata", "an object is right"),
        ({"input": "x", "instructions": [{}]}, "instructions", "text is right"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "runs no tools itself"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", "not empty"),
        (
            {"input": "x", "tools": [{**WEATHER, "parameters": {"type": "no"}}], "tool_choice": "required"},
            "tools[0].parameters",
            "cannot keep",
        ),
        (
            {"input": "x", "tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice",
            "one of the tools",
        ),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type", "'json_schema' is right"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema", "an object is right"),
        ({}, "input", "found nothing"),
        ({"input": []}, "input", "at least one item"),
        ({"input": [{"type": "reasoning"}]}, "input", "at least one message"),
        ({"input": ["x"]}, "input[0]", "an object is right"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "'message', 'function_call'"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "one of system, developer"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "text alone"),
        ({"input": [{"role": "user"}]}, "input[0].content", "text is right"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments", "text is right"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output", "text is right"),
        ({"input": "word " * 600}, "input", "tokens are too many"),
        ({"input": "word " * 600, "truncation": "auto"}, "input", "tokens are too many"),
    ],
)
async def test_what_is_wrong_is_named(one_worker: str, body: dict[str, Any], param: str, says: str) -> None:
    answer = await asyncio.to_thread(httpx.post, one_worker + "/v1/responses", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")
    assert says in error["message"]
    assert error["code"] == ("context_length_exceeded" if "too many" in says else None)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "role", "content"]), inner),
    max_leaves=6,
)
FIELDS = [
    *("input", "instructions", "tools", "tool_choice", "text", "metadata", "truncation", "include", "top_logprobs"),
    *("max_output_tokens", "temperature", "stream", "stream_options", "store", "parallel_tool_calls", "background"),
]


@settings(max_examples=200, deadline=None)
@given(body=st.dictionaries(st.sampled_from(FIELDS), values, max_size=6))
def test_any_json_is_read_or_refused_by_name(body: dict[str, Any]) -> None:
    for given_body in (body, {"input": "x"} | body):
        try:
            assert read_response(given_body).messages
        except InvalidRequestError as error:
            assert error.field.split("[")[0].split(".")[0] in FIELDS, error


async def test_a_client_that_goes_away_frees_its_slot(talking: Any) -> None:
    async with talking() as (client, running):
        stream = await client.responses.create(
            input=QUESTION, stream=True, extra_body={"ignore_eos": True}, **GREEDY | {"max_output_tokens": 400}
        )
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        async with asyncio.timeout(30):
            while not running.engine.idle:  # noqa: ASYNC110 - what is awaited happens in the engine's thread
                await asyncio.sleep(0.002)
        registry = running.worker.metrics.registry
        assert registry.get_sample_value("vllm:generation_tokens_total", {"model_name": MODEL}) < 400


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_ends_with_an_error(talking: Any, gated: Any, stream: bool) -> None:
    async with talking() as (client, running):
        gated.fault = lambda logits: logits * float("nan")
        if stream:
            events = await streamed(running, {"input": "x"})
            assert [event["type"] for event in events[-2:]] == ["response.in_progress", "response.failed"]
            assert events[-1]["response"]["status"] == "failed"
            assert events[-1]["response"]["error"]["code"] == "server_error"
            assert "NonFiniteLogitsError" in events[-1]["response"]["error"]["message"]
        else:
            with pytest.raises(openai.InternalServerError, match="NonFiniteLogitsError"):
                await client.responses.create(input="x", model=MODEL)


# -- agents ----------------------------------------------------------------------------------------------------------


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
