"""Does /v1/responses, asked by OpenAI's own client, say what /v1/chat/completions says?"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from typing import Any

import openai
import pytest
from berth_worker.engine.request import FinishReason
from berth_worker.engine.sampling import TokenLogprobs
from berth_worker.engine.stream import Chunk, Finish
from berth_worker.server import events as keep_alive
from berth_worker.server.answer_items import AnswerItems
from berth_worker.server.openai_reply import ChatChoice
from berth_worker.server.openai_request import read_chat
from berth_worker.server.responses_reply import ResponseReply
from berth_worker.server.responses_request import read_response
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from scripted import CALL, script

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "weather", "description": "Of a city", "parameters": CITY}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def as_chat(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


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


class Bytes:
    """A tokenizer for log-probabilities."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()


TEXTS = st.text(st.sampled_from('ab <{"\n'), max_size=6)


@given(
    parts=st.lists(TEXTS | st.sampled_from([CALL % "Oslo", CALL % "a</tool_call>", "<tool_call>no"]), max_size=5),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    whole=st.booleans(),
    logprobs=st.booleans(),
)
def test_events_tell_the_whole_answer_however_it_comes(
    parts: list[str], cuts: list[int], whole: bool, logprobs: bool
) -> None:
    tokenizer: Any = Bytes()
    asked = read_response({"input": "x", "tools": [WEATHER]})
    reply = ResponseReply(asked, AnswerItems(["weather"]), tokenizer, "r", MODEL)
    chat = ChatChoice(0, tokenizer, AnswerItems(["weather"]))
    text, events = "".join(parts), reply.begun()
    reason = FinishReason.STOP if whole else FinishReason.LENGTH
    at, left = 0, itertools.cycle(cuts)
    while at < len(text):
        piece = text[at : at + next(left)]
        at += len(piece)
        places = tuple(TokenLogprobs(ord(character), -1.0, ()) for character in piece if logprobs)
        chunk = Chunk(piece, tuple(map(ord, piece)), places)
        events += json.loads(json.dumps(reply.take(0, chunk)))  # as they are when they are sent
        chat.pieces(chunk)
    end = (TokenLogprobs(0, -1.0, ()),) if logprobs else ()
    last = Chunk("", (0,), end, finish=Finish(reason, 1, 0, len(text), 0, 0, 0))
    events += json.loads(json.dumps(reply.take(0, last) + reply.ended()))
    chat.pieces(last)
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items, message = told(events), chat.whole()["message"]
    assert items == reply.whole()["output"]
    assert [item["status"] for item in items] == ["completed"] * (len(items) - 1) + [
        "completed" if whole else "incomplete"
    ]
    said = [item["content"][0] for item in items if item["type"] == "message"]
    assert "".join(part["text"] for part in said) == (message["content"] or "")
    assert [(item["name"], item["arguments"]) for item in items if item["type"] == "function_call"] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])
    ]
    if logprobs and len(items) == len(said):
        assert sum(len(part["logprobs"]) for part in said) == len(text) + 1


async def test_a_stream_says_at_once_that_it_has_begun_and_while_it_waits_that_it_goes_on(
    talking: Any, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep_alive, "BEAT_SECONDS", 0.05)
    async with talking() as (_, running):
        gated.close()
        seen: list[str] = []
        async with running.http.stream("POST", "/v1/responses", json={"input": "x", "stream": True}) as answer:
            async for line in answer.aiter_lines():
                seen.append(line)
                if line == ": waiting":
                    break
        gated.gate.set()
    assert [line for line in seen if line.startswith("event: ")] == [
        "event: response.created",
        "event: response.in_progress",
    ]


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


# -- ends and failures -------------------------------------------------------------------------------------------


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
