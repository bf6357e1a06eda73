"""Does OpenAI's own client get from the HTTP face what the engine says?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from berth_worker.engine.request import SamplingParams
from berth_worker.server import events
from berth_worker.server.worker import Phase

MODEL = "smollm2-135m-instruct"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 24}
FOREVER: dict[str, Any] = {"model": MODEL, "temperature": 0, "extra_body": {"ignore_eos": True}}


async def eventually(condition: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in the engine's thread
            await asyncio.sleep(0.002)


def generated(running: Any) -> float:
    registry = running.worker.metrics.registry
    return float(registry.get_sample_value("vllm:generation_tokens_total", {"model_name": MODEL}))


def script(gated: Any, tokens: list[int]) -> None:
    """Let the model say these tokens, whatever it is asked; one request, without drafts."""
    left = iter(tokens)

    def say(logits: Any) -> Any:
        logits = logits.clone()
        logits[-1, next(left)] = 1000.0
        return logits

    gated.fault = say


def streamed_calls(pieces: list[Any]) -> list[Any]:
    """The calls of a stream, put together as OpenAI's client does it: the first piece of each names it."""
    calls: list[Any] = []
    for call in [c for piece in pieces for choice in piece.choices for c in choice.delta.tool_calls or []]:
        if call.index == len(calls):
            assert call.id
            assert call.type == "function"
            calls.append(call.model_copy(deep=True))
            continue
        assert call.index == len(calls) - 1
        assert (call.id, call.type, call.function.name) == (None, None, None)
        calls[-1].function.arguments += call.function.arguments
    return calls


# -- the same answer -------------------------------------------------------------------------------------------------


async def test_an_answer_is_the_engines_in_one_and_in_pieces(talking: Any) -> None:
    async with talking() as (client, running):
        tokenizer = running.engine.tokenizer
        direct = await asyncio.to_thread(
            running.engine.generate, tokenizer.encode_chat(QUESTION), SamplingParams(temperature=0, max_tokens=24)
        )
        whole = await client.chat.completions.create(messages=QUESTION, **GREEDY)
        assert (whole.object, whole.model, whole.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
        assert whole.choices[0].message.content == direct.text
        assert "Paris" in direct.text
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        assert whole.usage.prompt_tokens == direct.finish.prompt_tokens
        assert whole.usage.completion_tokens == len(direct.token_ids)
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert whole.usage.prompt_tokens_details.cached_tokens == direct.finish.prompt_tokens // 16 * 16

        pieces = [
            piece
            async for piece in await client.chat.completions.create(
                messages=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
            )
        ]
        assert {piece.object for piece in pieces} == {"chat.completion.chunk"}
        assert len({piece.id for piece in pieces}) == 1
        *spoken, last = pieces
        assert len(spoken) > 4
        assert spoken[0].choices[0].delta.role == "assistant"
        assert "".join(piece.choices[0].delta.content or "" for piece in spoken) == direct.text
        assert [piece.choices[0].finish_reason for piece in spoken] == [None] * (len(spoken) - 1) + ["stop"]
        assert last.choices == []
        assert last.usage == whole.usage


@pytest.mark.parametrize("logprobs", [None, 3])
async def test_a_completion_is_the_same_in_pieces(talking: Any, logprobs: int | None) -> None:
    asked = {"prompt": "The capital of France is", "logprobs": logprobs, **GREEDY}
    async with talking() as (client, _):
        whole = await client.completions.create(**asked)
        pieces = [piece async for piece in await client.completions.create(stream=True, **asked)]
    (answer,) = whole.choices
    parts = [piece.choices[0] for piece in pieces]
    assert whole.object == "text_completion"
    assert "".join(part.text for part in parts) == answer.text
    assert (parts[-1].finish_reason, answer.finish_reason) == ("length", "length")
    if logprobs is None:
        assert answer.logprobs is None
        return
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        said = [entry for part in parts if part.logprobs for entry in getattr(part.logprobs, name)]
        assert said == getattr(answer.logprobs, name)
    assert "".join(answer.logprobs.tokens) == answer.text
    assert answer.logprobs.text_offset[3] == len("".join(answer.logprobs.tokens[:3]))
    for token, value, top in zip(
        answer.logprobs.tokens, answer.logprobs.token_logprobs, answer.logprobs.top_logprobs, strict=True
    ):
        assert (len(top), max(top.values())) == (3, value)
        assert top[token] == value, "greedy takes the likeliest"


async def test_a_completion_without_max_tokens_has_as_many_as_fit_up_to_openais_16(talking: Any) -> None:
    async with talking() as (client, _):
        for prompt, tokens in ((8, 16), (500, 12), (511, 1)):
            whole = await client.completions.create(
                model=MODEL, prompt=[5] * prompt, temperature=0, extra_body={"ignore_eos": True}
            )
            assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (tokens, "length")


async def test_logprobs_of_parts_of_characters_point_into_the_text(talking: Any, gated: Any) -> None:
    async with talking(speculation="off") as (client, running):
        ids = running.engine.tokenizer.encode("日本 👩 a")
        script(gated, ids)
        asked = {"model": MODEL, "prompt": "x", "logprobs": 2, "max_tokens": len(ids), "temperature": 0}
        (answer,) = (await client.completions.create(**asked)).choices
        gated.fault = None
    places = answer.logprobs
    assert answer.text == "日本 👩 a"
    parts = [token.removeprefix("bytes:") != token for token in places.tokens]
    spelled = [
        bytes.fromhex(token[6:].replace("\\x", " ")) if part else token.encode()
        for token, part in zip(places.tokens, parts, strict=True)
    ]
    assert any(parts)
    assert b"".join(spelled).decode() == answer.text
    for index, offset in enumerate(places.text_offset):
        assert len(b"".join(spelled[:index]).decode(errors="ignore")) == offset
        assert places.top_logprobs[index][places.tokens[index]] == places.token_logprobs[index]


async def test_the_token_that_came_is_among_the_likeliest_that_are_shown(talking: Any) -> None:
    asked = {"model": MODEL, "prompt": "Once", "logprobs": 1, "temperature": 2, "seed": 1, "max_tokens": 12}
    async with talking() as (client, _):
        places = (await client.completions.create(**asked)).choices[0].logprobs
    assert 2 in {len(top) for top in places.top_logprobs}
    for token, top, value in zip(places.tokens, places.top_logprobs, places.token_logprobs, strict=True):
        assert top[token] == value


async def test_logprobs_of_a_chat_come_with_bytes_in_one_and_in_pieces(talking: Any) -> None:
    asked = {"messages": QUESTION, "logprobs": True, "top_logprobs": 2, **GREEDY}
    async with talking() as (client, _):
        whole = await client.chat.completions.create(**asked)
        pieces = [piece async for piece in await client.chat.completions.create(stream=True, **asked)]
    places = whole.choices[0].logprobs.content
    said = [p for piece in pieces if piece.choices[0].logprobs for p in piece.choices[0].logprobs.content]
    assert said == places
    *shown, end = places
    assert b"".join(bytes(place.bytes) for place in shown).decode() == whole.choices[0].message.content
    assert end.token == "<|im_end|>"
    assert all(place.logprob <= 0 and len(place.top_logprobs) == 2 for place in places)


async def test_a_seed_gives_the_same_answers_and_its_choices_differ(talking: Any) -> None:
    asked = {"model": MODEL, "prompt": ["Once upon a time", "Dear Sir"], "seed": -7, "n": 2, "max_tokens": 12}
    async with talking() as (client, _):
        first, second = [await client.completions.create(**asked) for _ in range(2)]
        pieces = [piece async for piece in await client.completions.create(stream=True, **asked)]
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 4
    for index, text in enumerate(texts):
        assert "".join(c.text for piece in pieces for c in piece.choices if c.index == index) == text
    assert first.usage.completion_tokens == 48
    assert first.usage.prompt_tokens == 4 + 2, "each prompt counts once"


async def test_stop_strings_tokens_and_biases_reach_the_engine(talking: Any) -> None:
    async with talking() as (client, running):
        encode = running.engine.tokenizer.encode
        whole = (await client.completions.create(prompt="1, 2, 3, 4,", **GREEDY)).choices[0].text
        for stop in (whole[9:12], [whole[9:12], "no such text"]):
            cut = (await client.completions.create(prompt="1, 2, 3, 4,", stop=stop, **GREEDY)).choices[0]
            assert (cut.text, cut.finish_reason) == (whole[: whole.index(whole[9:12])], "stop")
        biased = await client.completions.create(
            prompt="The", logit_bias={str(encode(" zebra")[0]): 100}, **GREEDY | {"max_tokens": 2}
        )
        assert biased.choices[0].text.startswith(" z")
        ids = await client.completions.create(prompt=encode("1, 2, 3, 4,"), **GREEDY)
        assert ids.choices[0].text == whole
        off = await client.completions.create(prompt="1, 2, 3, 4,", extra_body={"top_k": -1}, **GREEDY)
        assert off.choices[0].text == whole, "as vLLM's clients say that top_k is off"
        short = await client.completions.create(prompt="x", model=MODEL, extra_body={"ignore_eos": True})
        assert short.usage.completion_tokens == 16, "OpenAI's default"


async def test_content_may_be_parts_and_developers_speak_as_the_system(talking: Any) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
    text = "What is the capital\nof France?"
    async with talking() as (client, _):
        one, other = [
            await client.chat.completions.create(
                messages=[{"role": role, "content": "Be brief."}, {"role": "user", "content": content}],  # type: ignore[list-item]
                **GREEDY,
            )
            for role, content in (("developer", parts), ("system", text))
        ]
    assert one.choices[0].message.content == other.choices[0].message.content
    assert one.usage.prompt_tokens == other.usage.prompt_tokens


async def test_an_answer_that_said_nothing_or_refused_may_be_sent_back(talking: Any) -> None:
    async with talking() as (client, running):
        refused = [{"type": "text", "text": "Well,"}, {"type": "refusal", "refusal": "no."}]
        empty, parts = {"content": None}, {"content": refused}
        for said, meant in (
            (empty, ""),
            (empty | {"tool_calls": []}, ""),
            ({"refusal": "No."}, "No."),
            (parts, "Well,\nno."),
        ):
            history = [*QUESTION, {"role": "assistant", **said}, {"role": "user", "content": "Well?"}]
            answer = await client.chat.completions.create(messages=history, **GREEDY)
            spoken = [history[0], {"role": "assistant", "content": meant}, history[2]]
            assert answer.usage.prompt_tokens == len(running.engine.tokenizer.encode_chat(spoken))


async def test_more_answers_than_the_worker_has_room_for_are_refused_for_good(talking: Any) -> None:
    async with talking(max_running=1, max_waiting=1) as (client, _):
        with pytest.raises(openai.BadRequestError, match="n: 3 answers in all; this worker has room for 2") as caught:
            await client.chat.completions.create(messages=QUESTION, n=3, **GREEDY)
        assert caught.value.param == "n"
        assert len((await client.chat.completions.create(messages=QUESTION, n=2, **GREEDY)).choices) == 2


@pytest.mark.parametrize("how", ["session_id", "x-session-id", "prompt_cache_key"])
async def test_a_session_is_kept_for_its_next_turn(talking: Any, how: str) -> None:
    asked: dict[str, Any] = dict(GREEDY)
    asked |= {"extra_headers": {how: "agent"}} if how == "x-session-id" else {"extra_body": {how: "agent"}}
    async with talking() as (client, running):
        await client.chat.completions.create(messages=QUESTION, **asked)
        assert running.engine.stats().sessions_retained == 1


# -- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tags", "bare"])
async def test_a_tool_call_goes_from_the_model_to_the_client_and_back(talking: Any, gated: Any, form: str) -> None:
    call = '{"name": "weather", "arguments": {"city": "Oslo", "note": "é"}}'
    said = f"<tool_call>\n{call}\n</tool_call>" if form == "tags" else call
    asked = {"messages": [{"role": "user", "content": "How is Oslo?"}], "tools": [WEATHER], "model": MODEL}
    async with talking(speculation="off", max_context_tokens=1024) as (client, running):
        tokenizer = running.engine.tokenizer
        answer = [*tokenizer.encode(said), 2]
        script(gated, answer)
        whole = (await client.chat.completions.create(**asked)).choices[0]
        script(gated, answer)
        pieces = [piece async for piece in await client.chat.completions.create(stream=True, **asked)]
        gated.fault = None

        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
        (made,) = whole.message.tool_calls
        assert (made.type, made.function.name) == ("function", "weather")
        assert json.loads(made.function.arguments) == {"city": "Oslo", "note": "é"}
        deltas = [piece.choices[0].delta for piece in pieces]
        (streamed,) = streamed_calls(pieces)
        assert (streamed.index, streamed.function.name) == (0, "weather")
        assert streamed.function.arguments == made.function.arguments
        assert streamed.id != made.id
        assert (sum(bool(delta.tool_calls) for delta in deltas) > 5) is (form == "tags"), "as they are written"
        assert not any(delta.content for delta in deltas)
        assert pieces[-1].choices[0].finish_reason == "tool_calls"

        history = [
            *asked["messages"],
            whole.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": made.id, "content": "<|im_end|>rain"},
        ]
        prompt = tokenizer.decode(tokenizer.encode_chat(history, tools=[WEATHER]), skip_special_tokens=False)
        assert f"<|im_start|>assistant\n<tool_call>\n{call}\n</tool_call><|im_end|>\n" in prompt
        again = await client.chat.completions.create(messages=history, tools=[WEATHER], **GREEDY)
        ids = tokenizer.encode_chat(history, tools=[WEATHER])
        assert again.usage.prompt_tokens == len(ids)
        assert ids.count(2) == 4, "system, user, assistant, result; none of the text's own"


async def test_a_client_that_wants_one_call_at_a_time_gets_one(talking: Any, gated: Any) -> None:
    said = "".join(
        f'<tool_call>{{"name": "weather", "arguments": {{"city": "{city}"}}}}</tool_call>' for city in ("Oslo", "Rome")
    )
    async with talking(speculation="off") as (client, running):
        for parallel, count in ((True, 2), (False, 1)):
            script(gated, [*running.engine.tokenizer.encode(said), 2])
            asked = {"messages": QUESTION, "tools": [WEATHER], "parallel_tool_calls": parallel, "model": MODEL}
            (choice,) = (await client.chat.completions.create(**asked)).choices
            assert (len(choice.message.tool_calls), choice.finish_reason) == (count, "tool_calls")
            script(gated, [*running.engine.tokenizer.encode(said), 2])
            pieces = [piece async for piece in await client.chat.completions.create(stream=True, **asked)]
            assert [call.function for call in streamed_calls(pieces)] == [
                openai.types.chat.chat_completion_chunk.ChoiceDeltaToolCallFunction(**call.function.model_dump())
                for call in choice.message.tool_calls
            ]


FORCED: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


@pytest.mark.parametrize(("choice", "tools"), [("required", [WEATHER]), (FORCED, [OTHER, WEATHER])])
async def test_an_answer_that_has_to_call_a_tool_calls_it(talking: Any, gated: Any, choice: Any, tools: Any) -> None:
    begun = '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments":'
    asked = {"messages": QUESTION, "tools": tools, "tool_choice": choice, "model": MODEL}
    async with talking(speculation="off", max_context_tokens=1024) as (client, running):
        tokenizer = running.engine.tokenizer
        ids = tokenizer.encode_chat(QUESTION, tools=tools, call="weather")
        assert tokenizer.decode(ids, skip_special_tokens=False).endswith(begun)
        said = [*tokenizer.encode(' {"city": "Oslo</tool_call>"}}\n</tool_call>'), 2]
        script(gated, said)
        whole = await client.chat.completions.create(**asked)
        script(gated, said)
        pieces = [piece async for piece in await client.chat.completions.create(stream=True, **asked)]
        script(gated, said)
        cut = (await client.chat.completions.create(max_tokens=3, **asked)).choices[0]

        assert whole.usage.prompt_tokens == len(ids)
        assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == ("tool_calls", None)
        (made,) = whole.choices[0].message.tool_calls
        assert (made.function.name, made.function.arguments) == ("weather", '{"city": "Oslo</tool_call>"}')
        (streamed,) = streamed_calls(pieces)
        assert len([piece for piece in pieces if piece.choices[0].delta.tool_calls]) > 3
        assert streamed.function.model_dump() == made.function.model_dump()
        assert not any(piece.choices[0].delta.content for piece in pieces)
        assert pieces[-1].choices[0].finish_reason == "tool_calls"
        assert (cut.finish_reason, cut.message.tool_calls[0].function.name) == ("length", "weather")
        assert cut.message.tool_calls[0].function.arguments == tokenizer.decode(said[:3]).strip()


# -- limits and failures ---------------------------------------------------------------------------------------------


async def test_a_stream_that_waits_says_that_it_goes_on(
    talking: Any, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    async with talking() as (client, running):
        gated.close()
        lines: list[str] = []
        body = {"prompt": "x", "stream": True, **GREEDY}
        asking = asyncio.create_task(client.completions.create(**body))
        async with running.http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": waiting") == 2:
                    gated.gate.set()
        pieces = [piece async for piece in await asking]
    assert all(line in ("", ": waiting") or line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    text = "".join(piece.choices[0].text for piece in pieces)
    assert "".join(json.loads(event)["choices"][0]["text"] for event in data[:-1]) == text
    assert text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_slot(talking: Any, stream: bool) -> None:
    async with talking() as (client, running):
        if stream:
            answer = await client.completions.create(prompt="x", stream=True, **FOREVER | {"max_tokens": 400})
            await anext(aiter(answer))
            await answer.close()
        else:
            asking = asyncio.create_task(client.completions.create(prompt="x", **FOREVER | {"max_tokens": 400}))
            await eventually(lambda: running.engine.stats().running)
            asking.cancel()
        await eventually(lambda: running.engine.idle)
        assert running.engine.stats().blocks_held == 0
        assert 0 < generated(running) < 400
        await eventually(lambda: running.http_server.open_calls == 0)


async def test_a_full_queue_answers_429_at_once_and_leaves_none_of_its_choices(talking: Any, gated: Any) -> None:
    async with talking(max_running=1, max_waiting=2) as (client, running):
        gated.close()
        first = asyncio.create_task(client.completions.create(prompt="x", **GREEDY))
        await eventually(lambda: not running.engine.idle)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(prompt=["a", "b", "c"], **GREEDY)
        assert caught.value.code == "queue_full"
        assert "at most 1 run and 2 wait" in caught.value.message
        told = caught.value.response.headers
        assert (
            500 <= int(told["retry-after-ms"]) <= 1000 * int(told["retry-after"]) < int(told["retry-after-ms"]) + 1000
        )
        assert told["connection"] == "close"
        gated.gate.set()
        assert (await first).choices[0].finish_reason == "length"
        await eventually(lambda: running.engine.idle)
        assert running.http_server.open_calls == 0


async def test_a_worker_that_loads_or_leaves_says_so_and_one_that_leaves_closes_connections(
    talking: Any, serving: Any
) -> None:
    async with serving(load=False) as running:
        answer = await running.http.post("/v1/chat/completions", json={"messages": QUESTION})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert answer.headers["connection"] == "close"
        assert (await running.http.get("/v1/models")).status_code == 503
    async with talking() as (client, running):
        running.worker.phase = Phase.LEAVING
        answer = await running.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        running.engine.refuse_new()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(prompt="x", **GREEDY)
        assert (caught.value.status_code, caught.value.code) == (503, "not_accepting")
        assert caught.value.response.headers["retry-after"] == "1"
        assert 500 <= int(caught.value.response.headers["retry-after-ms"]) <= 1000
        assert caught.value.response.headers["connection"] == "close"


async def test_a_client_that_stalls_in_its_request_keeps_no_worker_from_leaving(serving: Any) -> None:
    async with serving() as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.http_server.port)
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt"')
        await writer.drain()
        for _ in range(3):
            assert (await running.http.get("/healthz")).status_code == 200
        assert running.http_server.open_calls == 0
        writer.close()


async def test_every_answer_names_its_request(talking: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as (client, running):
        asked: dict[str, Any] = {"prompt": "x", "model": MODEL, "max_tokens": 1}
        for own in ("agent-7/turn 3", "x" * 257, "é"):
            made = await running.http.post("/v1/completions", json=asked, headers={"x-request-id": own.encode()})
            assert made.status_code == 200
            assert len(made.headers["x-request-id"]) == 32
            assert made.headers["x-request-id"] != own
            assert made.json()["id"] == f"cmpl-{made.headers['x-request-id']}"
        for stream in (False, True):
            raw = await client.completions.with_raw_response.create(
                stream=stream, extra_headers={"x-request-id": "a-1"}, **asked
            )
            assert raw.headers.get_list("x-request-id") == ["a-1"]
        whole = await client.completions.create(extra_headers={"x-request-id": "a-2"}, **asked)
        assert (whole._request_id, whole.id) == ("a-2", "cmpl-a-2")
        for path in ("/healthz", "/metrics", "/v1/models", "/nothing", "/v1/completions"):
            answer = await running.http.get(path, headers={"x-request-id": "probe"})
            assert answer.headers.get_list("x-request-id") == ["probe"], path
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(extra_headers={"x-request-id": "a-3"}, **asked | {"temperature": 9})
        assert refused.value.request_id == "a-3"
        running.worker.constraints = None  # what no test can provoke by asking
        with pytest.raises(openai.InternalServerError) as failed:
            await client.completions.create(**asked)
        assert f"/v1/completions failed, request {failed.value.request_id}" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_ends_with_an_error_and_the_worker_goes_on(
    talking: Any, gated: Any, stream: bool
) -> None:
    async with talking() as (client, _):
        gated.fault = lambda logits: logits * float("nan")
        with pytest.raises(openai.APIError, match="NonFiniteLogitsError") as caught:
            answer = await client.completions.create(prompt="x", stream=stream, **GREEDY)
            assert stream
            [piece async for piece in answer]
        assert stream or caught.value.status_code == 500  # type: ignore[attr-defined]
        gated.fault = None
        assert (await client.completions.create(prompt="x", **GREEDY)).choices[0].finish_reason == "length"


async def test_the_model_is_listed_and_another_is_not_found(talking: Any) -> None:
    async with talking() as (client, running):
        (card,) = (await client.models.list()).data
        assert (card.id, card.owned_by, card.max_model_len) == (MODEL, "berth", 512)
        assert (await client.models.retrieve(MODEL)).id == MODEL
        for asking in (
            client.models.retrieve("gpt-5"),
            client.chat.completions.create(model="gpt-5", messages=QUESTION),
        ):
            with pytest.raises(openai.NotFoundError, match=f"found 'gpt-5'; this worker serves '{MODEL}'") as caught:
                await asking
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        served = "this worker serves /v1/chat/completions, /v1/responses, /v1/completions, /v1/models"
        with pytest.raises(openai.NotFoundError, match=f"POST /v1/embeddings: Not Found; {served}"):
            await client.embeddings.create(model=MODEL, input="x")
        with pytest.raises(openai.NotFoundError, match=f"POST /chat/completions: Not Found; {served}"):
            await client.with_options(base_url=str(running.http.base_url)).chat.completions.create(
                model=MODEL, messages=QUESTION
            )
        assert (await running.http.get("/v1/completions")).json()["error"]["type"] == "invalid_request_error"
        assert (await running.http.get("/nothing")).json()["error"]["message"] == f"GET /nothing: Not Found; {served}"
