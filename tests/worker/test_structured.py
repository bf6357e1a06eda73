"""Are answers of the real model what a client says they have to be, and all others what they would be without them?"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jsonschema
import openai
import pytest
from berth_worker.engine.report import StepReport
from berth_worker.engine.request import InvalidRequestError, SamplingParams
from berth_worker.server.constraints import Constraints
from berth_worker.server.openai_request import read_chat
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 160}
ROOM: dict[str, Any] = {"max_context_tokens": 1024, "kv_cache_tokens": 16384}


def tool(name: str, said: str, properties: dict[str, Any], **further: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": said, "parameters": parameters} | further}


TEXT = {"type": "string", "maxLength": 40}
WEATHER = tool(
    "get_weather",
    "Current weather of a city",
    {
        "city": TEXT,
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
)
MAIL = tool(
    "send_mail",
    "Send a mail",
    {
        "to": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2},
        "subject": TEXT,
        "urgent": {"type": "boolean"},
    },
)
FILTERS = {"type": "object", "properties": {"lang": {"type": "string", "pattern": "^[a-z]{2}$"}}, "required": ["lang"]}
SEARCH = tool("search", "Search the web", {"query": TEXT, "limit": {"type": "integer"}, "filters": FILTERS})
TOOLS = [WEATHER, MAIL, SEARCH]
PARAMETERS = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
QUESTIONS = [
    *("What is the weather in Oslo?", "Will it rain in Paris tomorrow?", "Search for cheap flights to Rome"),
    *("Mail bob@example.org that lunch is at noon", "Who won the cup in 1998?", "Is it cold in Moscow?"),
    *("Write to alice@example.com about the budget", "Find papers about glaciers"),
]
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": 60},
        "sure": {"type": "integer", "minimum": 0, "maximum": 100},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["answer", "sure", "tags"],
    "additionalProperties": False,
}


class Steps:
    """Counts what the engine runs."""

    count = generated = 0

    def step(self, report: StepReport) -> None:
        self.count += 1
        self.generated += report.generated

    def finished(self, finish: object, e2e_seconds: float) -> None:
        pass


def asked(question: str) -> Any:
    return [{"role": "user", "content": question}]


def forced(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


async def forced_calls(client: Any) -> list[tuple[str, str, str]]:
    """Name, arguments and finish reason: each question with each tool forced."""

    async def one(question: str, name: str) -> tuple[str, str, str]:
        answer = await client.chat.completions.create(
            messages=asked(question), tools=TOOLS, tool_choice=forced(name), **GREEDY
        )
        (call,) = answer.choices[0].message.tool_calls
        return call.function.name, call.function.arguments, answer.choices[0].finish_reason

    return await asyncio.gather(*(one(question, name) for question in QUESTIONS for name in PARAMETERS))


async def test_forced_calls_fit_their_schemas_and_end_with_and_without_drafts(talking: Any) -> None:
    found = []
    for speculation in ("prompt-lookup", "off"):
        async with talking(speculation=speculation, max_running=16, max_waiting=32, **ROOM) as (client, _):
            found.append(await forced_calls(client))
    assert found[0] == found[1]
    assert len(found[0]) == 24
    for name, arguments, reason in found[0]:
        jsonschema.validate(json.loads(arguments), PARAMETERS[name])
        assert reason == "tool_calls"


async def test_forced_tokens_cost_no_steps_of_their_own(make_engine: Callable[..., Any], loaded: Any) -> None:
    from berth_worker.grammar.guidance import Guidance  # noqa: PLC0415
    from berth_worker.grammar.text import json_value  # noqa: PLC0415 - imports llguidance with it

    schema = {"properties": {f"a rather long name of property {i}": {"enum": [1, 2]} for i in range(5)}}
    schema |= {"type": "object", "required": list(schema["properties"]), "additionalProperties": False}
    grammar = Guidance(loaded.tokenizer, loaded.tokenizer.vocab_size).read(json_value(schema))
    prompt, found = loaded.tokenizer.encode_chat(asked("Numbers?")), []
    for speculation in ("off", "prompt-lookup"):
        steps = Steps()
        engine = make_engine(observer=steps, speculation=speculation)
        params = SamplingParams(max_tokens=200, temperature=0)
        found.append((await asyncio.to_thread(engine.generate, prompt, params, constraint=grammar.start()), steps))
    (plain, one_by_one), (drafted, together) = found
    assert plain.token_ids == drafted.token_ids
    jsonschema.validate(json.loads(plain.text), schema)
    assert one_by_one.count == len(plain.token_ids)
    assert together.count < len(plain.token_ids) / 3


async def test_streams_beside_constrained_ones_say_what_they_say_alone(talking: Any) -> None:
    async with talking(**ROOM) as (client, _):
        free = {"messages": asked("Tell me a story."), **GREEDY} | {"max_tokens": 48}
        alone = (await client.chat.completions.create(**free)).choices[0].message.content
        bound = {"messages": asked("How is Oslo?"), **GREEDY, "response_format": as_format(SCHEMA)}
        apart = (await client.chat.completions.create(**bound)).choices[0].message.content
        both = await asyncio.gather(*(client.chat.completions.create(**each) for each in (free, bound, free, bound)))
    assert [answer.choices[0].message.content for answer in both] == [alone, apart, alone, apart]
    jsonschema.validate(json.loads(apart), SCHEMA)


async def test_an_answer_in_a_format_is_true_to_it_in_one_and_in_pieces(talking: Any) -> None:
    async with talking(max_running=16, **ROOM) as (client, _):

        async def one(question: str, index: int) -> None:
            drawn = {"temperature": 1.0, "seed": index} if index % 2 else {}
            body = {"messages": asked(question), **GREEDY, "response_format": as_format(SCHEMA)} | drawn
            whole = (await client.chat.completions.create(**body)).choices[0]
            pieces = [piece async for piece in await client.chat.completions.create(stream=True, **body)]
            assert whole.finish_reason == "stop"
            jsonschema.validate(json.loads(whole.message.content), SCHEMA)
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.message.content
            assert pieces[-1].choices[0].finish_reason == "stop"

        await asyncio.gather(*(one(question, index) for index, question in enumerate(QUESTIONS)))


class Place(BaseModel):
    """What a client's own types ask for: $defs, references, optional fields."""

    name: str = Field(max_length=20)
    people: int | None


class Places(BaseModel):
    places: list[Place] = Field(max_length=2)


async def test_openais_client_parses_its_own_types(talking: Any) -> None:
    async with talking(**ROOM) as (client, _):
        answer = await client.chat.completions.parse(messages=asked("Two towns?"), response_format=Places, **GREEDY)
        parsed = answer.choices[0].message.parsed
        assert isinstance(parsed, Places)
        tools = [openai.pydantic_function_tool(Places, name="places")]
        called = await client.chat.completions.parse(
            messages=asked("Two towns?"), tools=tools, tool_choice="required", **GREEDY
        )
    (call,) = called.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Places)


class Day(BaseModel):
    date: datetime.date


async def test_a_type_as_pydantic_spells_it_comes_to_its_end(talking: Any) -> None:
    """Without `additionalProperties`, as clients send it who leave OpenAI's strict form alone."""
    form = {"type": "json_schema", "json_schema": {"name": "day", "schema": Day.model_json_schema()}}
    async with talking(**ROOM) as (client, _):
        for question in ("Give me JSON.", "When was Oslo founded?"):
            answer = await client.chat.completions.create(messages=asked(question), response_format=form, **GREEDY)
            assert answer.choices[0].finish_reason == "stop"
            assert json.loads(answer.choices[0].message.content).keys() == {"date"}


@pytest.mark.parametrize("several", [False, True])
async def test_where_a_call_is_required_the_model_chooses_which(talking: Any, several: bool) -> None:
    async with talking(max_running=16, **ROOM) as (client, _):
        body = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": several, **GREEDY}
        body |= {"response_format": {"type": "json_object"}}  # of an answer that calls no tool
        answers = await asyncio.gather(
            *(client.chat.completions.create(messages=asked(question), **body) for question in QUESTIONS)
        )
    called = set()
    for answer in answers:
        choice = answer.choices[0]
        assert choice.message.tool_calls
        assert several or len(choice.message.tool_calls) == 1
        assert choice.finish_reason == "tool_calls" or several
        for call in choice.message.tool_calls:
            called.add(call.function.name)
            jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
    assert len(called) > 1


def steered(gated: Any, tokenizer: Any, said: str) -> None:
    """Let the model want to say this and then to end its turn, a token at a time; one request, without drafts."""
    wanted = [*tokenizer.encode(said, add_special_tokens=False), *[2] * 50]
    left = iter(wanted)

    def say(logits: Any) -> Any:
        logits = logits.clone()
        if len(logits):  # not yet, while the prompt is read
            logits[-1, next(left)] = 1000.0
        return logits

    gated.fault = say


def strictly(each: Any) -> Any:
    return {"type": "function", "function": each["function"] | {"strict": True}}


BROKEN = 'So: <tool_call>\n{"name": "time", "arguments": {"zone": "Oslo"}}\n</tool_call>'
TIME = tool("time", "The time", {"zone": {"enum": ["UTC"]}})


@pytest.mark.parametrize("strict", [False, True])
async def test_a_strict_tool_is_called_by_its_schema_or_not_at_all(talking: Any, gated: Any, strict: bool) -> None:
    async with talking(speculation="off", **ROOM) as (client, running):
        steered(gated, running.engine.tokenizer, BROKEN)
        tools = [strictly(TIME) if strict else TIME, WEATHER]
        choice = (await client.chat.completions.create(messages=asked("Time?"), tools=tools, **GREEDY)).choices[0]
        assert choice.message.content.startswith("So: ")
        arguments = choice.message.tool_calls[0].function.arguments
        assert (json.loads(arguments) == {"zone": "UTC"}) is strict
        steered(gated, running.engine.tokenizer, "No tool {is} needed.")
        choice = (await client.chat.completions.create(messages=asked("Time?"), tools=tools, **GREEDY)).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("No tool {is} needed.", "stop")


async def test_a_turn_that_may_call_no_tool_calls_none_and_finds_its_history_all_the_same(
    talking: Any, gated: Any
) -> None:
    async with talking(speculation="off", **ROOM) as (client, running):
        tokenizer = running.engine.tokenizer
        body = {"messages": asked("Time?"), "tools": [strictly(TIME), WEATHER], **GREEDY}
        called = await client.chat.completions.create(**body)
        steered(gated, tokenizer, BROKEN)
        none = await client.chat.completions.create(**body, tool_choice="none")
        steered(gated, tokenizer, '{"answer": "<tool_call>", "sure": 1, "tags": []}')
        form = await client.chat.completions.create(**body, tool_choice="none", response_format=as_format(SCHEMA))
    assert none.usage.prompt_tokens == called.usage.prompt_tokens
    assert none.usage.prompt_tokens_details.cached_tokens >= none.usage.prompt_tokens - 16
    choice = none.choices[0]
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    assert choice.message.content.startswith("So: <tool_call")
    assert "<tool_call>" not in choice.message.content
    assert json.loads(form.choices[0].message.content)["answer"] == "<tool_call>"
    assert form.choices[0].message.tool_calls is None


async def test_with_tools_an_answer_is_in_its_format_or_a_call(talking: Any, gated: Any) -> None:
    async with talking(speculation="off", **ROOM) as (client, running):
        body = {"messages": asked("Time?"), "tools": [TIME], "response_format": as_format(SCHEMA), **GREEDY}
        steered(gated, running.engine.tokenizer, '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>')
        called = (await client.chat.completions.create(**body)).choices[0]
        assert (called.message.content, called.finish_reason) == (None, "tool_calls")
        steered(gated, running.engine.tokenizer, '{"answer": "late", "sure": 1, "tags": []}')
        said = (await client.chat.completions.create(**body)).choices[0]
        assert said.message.content == '{"answer": "late", "sure": 1, "tags": []}'


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"guided_json": SCHEMA}, None),
        ({"guided_json": json.dumps(SCHEMA)}, None),
        ({"structured_outputs": {"json": SCHEMA, "disable_fallback": True}}, None),
        ({"guided_regex": r"[A-Z][a-z]{2,9}, \d{4}/\d{2}"}, r"[A-Z][a-z]{2,9}, \d{4}/\d{2}"),
        ({"structured_outputs": {"regex": "a{3}b"}}, "aaab"),
        ({"guided_choice": ["Paris", "Rome"]}, "Paris|Rome"),
        ({"structured_outputs": {"choice": ["x y", "é"]}}, "x y|é"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
async def test_vllms_ways_to_say_it_work_too(talking: Any, body: dict[str, Any], form: str | None, chat: bool) -> None:
    async with talking(**ROOM) as (client, _):
        if chat:
            (choice,) = (
                await client.chat.completions.create(messages=asked("Capital?"), extra_body=body, **GREEDY)
            ).choices
            text = choice.message.content
        else:
            said = "A town as JSON: "
            (choice,) = (await client.completions.create(prompt=said, extra_body=body, **GREEDY)).choices
            text = choice.text
    assert choice.finish_reason == "stop"
    if form is not None:
        assert re.fullmatch(form, text)
    else:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "body",
    [{"response_format": {"type": "json_object"}}, {"extra_body": {"structured_outputs": {"json_object": True}}}],
)
async def test_any_object_will_do(talking: Any, body: dict[str, Any]) -> None:
    async with talking(**ROOM) as (client, _):
        answer = await client.chat.completions.create(messages=asked("Oslo as JSON?"), **GREEDY, **body)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


async def test_choices_of_one_request_keep_to_it_each(talking: Any) -> None:
    async with talking(**ROOM) as (client, _):
        answer = await client.chat.completions.create(
            messages=asked("A town?"), n=4, model=MODEL, seed=5, max_tokens=80, response_format=as_format(SCHEMA)
        )
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


async def test_max_tokens_and_stop_strings_cut_it_as_they_cut_any_text(talking: Any) -> None:
    async with talking(**ROOM) as (client, _):
        body = {"messages": asked("A town?"), **GREEDY, "response_format": as_format(SCHEMA)}
        whole = (await client.chat.completions.create(**body)).choices[0].message.content
        cut = (await client.chat.completions.create(**body | {"max_tokens": 4})).choices[0]
        stopped = (await client.chat.completions.create(**body, stop='", "sure')).choices[0]
    assert cut.finish_reason == "length"
    assert whole.startswith(cut.message.content)
    assert len(cut.message.content) > 0
    assert (stopped.finish_reason, stopped.message.content) == ("stop", whole.partition('", "sure')[0])


async def test_a_preempted_answer_goes_on_where_it_was(talking: Any) -> None:
    body = {**GREEDY, "max_tokens": 90, "response_format": as_format(SCHEMA)}

    async def all_of(client: Any) -> list[str]:
        answers = await asyncio.gather(
            *(client.chat.completions.create(messages=asked(question), **body) for question in QUESTIONS)
        )
        return [answer.choices[0].message.content for answer in answers]

    async with talking(max_context_tokens=160, kv_cache_tokens=8192) as (client, _):
        wanted = await all_of(client)
    async with talking(max_context_tokens=160, kv_cache_tokens=160) as (client, running):
        assert await all_of(client) == wanted
        assert running.engine._scheduler.preemptions > 0


async def test_logprobs_are_the_models_own(talking: Any) -> None:
    async with talking(**ROOM) as (client, _):
        answer = await client.chat.completions.create(
            messages=asked("Capital of France?"),
            logprobs=True,
            top_logprobs=2,
            extra_body={"guided_choice": ["xylophone"]},
            **GREEDY,
        )
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob < first.top_logprobs[-1].logprob
    assert first.token not in [top.token for top in first.top_logprobs]


NOT_STRICT = tool(
    "note", "A note", {"ids": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2}}
)
LOOKING = tool("look", "Look", {"x": {"type": "string", "pattern": "(?=a)b"}})


async def test_what_cannot_be_kept_to_is_refused_or_left_out_where_that_is_allowed(
    talking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with talking(**ROOM) as (client, running):

        async def refused(**body: Any) -> tuple[str, str]:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(messages=asked("x"), **GREEDY, **body)
            return str(caught.value.param), str(caught.value.body["message"])  # type: ignore[index]

        required: dict[str, Any] = {"tool_choice": "required"}
        for body, param, says in (
            (
                {"response_format": as_format({"uniqueItems": True})},
                "response_format.json_schema.schema",
                "uniqueItems",
            ),
            ({"tools": [WEATHER, strictly(NOT_STRICT)]} | required, "tools[1].function.parameters", "uniqueItems"),
            ({"tools": [WEATHER, LOOKING]} | required, "tools[1].function.parameters", "look-around"),
            ({"tools": [strictly(LOOKING)]}, "tools[0].function.parameters", "look-around"),
            ({"extra_body": {"guided_regex": "(a"}}, "guided_regex", "unclosed group"),
            ({"extra_body": {"structured_outputs": {"json": {"not": {}}}}}, "structured_outputs.json", "not"),
        ):
            found, message = await refused(**body)
            assert found == param
            assert message.startswith(f"{param}: this worker cannot keep an answer to it: ")
            assert says in message
        assert not caplog.records
        caplog.set_level(logging.WARNING)
        for _ in range(2):
            answer = await client.chat.completions.create(messages=asked("x"), tools=[NOT_STRICT], **required, **GREEDY)
            assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["ids"] is not None
        (said,) = [record.message for record in caplog.records if "uniqueItems" in record.message]
        assert "not strict" in said
        assert running.engine.idle


async def test_a_format_is_kept_to_or_refused_beside_tools_that_are_not_strict(loaded: Any) -> None:
    """Of a model whose calls begin as an answer in JSON does."""

    class Bare:
        eos_ids, control_ids = loaded.tokenizer.eos_ids, loaded.tokenizer.control_ids
        vocab_size = loaded.tokenizer.vocab_size
        token_bytes, encode = loaded.tokenizer.token_bytes, loaded.tokenizer.encode

        def call_text(self, name: str) -> tuple[str, str]:
            return f'{{"name": "{name}", "parameters":', "}"

    engine: Any = SimpleNamespace(tokenizer=Bare(), vocab_size=Bare.vocab_size)
    constraints, body = Constraints(), {"messages": asked("x"), "tools": [NOT_STRICT]}
    read = await constraints.grammar(read_chat(body | {"response_format": as_format(SCHEMA)}), engine)
    assert read is not None
    for said in ('{"answer": "a", "sure": 1, "tags": []}', '{"name": "note", "parameters": {"any": 1}}'):
        output = read.start()
        for token in loaded.tokenizer.encode(said):
            output.accept(token)
        assert output.ended
    with pytest.raises(InvalidRequestError, match=r"response_format\.json_schema\.schema: .*uniqueItems"):
        await constraints.grammar(read_chat(body | {"response_format": as_format({"uniqueItems": True})}), engine)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"response_format": "json"}, "response_format", "an object is right"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema' is right"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "an object is right"),
        ({"response_format": as_format([])}, "response_format.json_schema.schema", "an object is right"),  # type: ignore[arg-type]
        ({"guided_json": "{"}, "guided_json", "a JSON schema is right"),
        ({"guided_json": [1]}, "guided_json", "a JSON schema is right"),
        ({"guided_regex": ""}, "guided_regex", "a regular expression is right"),
        ({"guided_choice": []}, "guided_choice", "texts that are not empty"),
        ({"guided_choice": ["a", 1]}, "guided_choice", "texts that are not empty"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "guided_regex says already"),
        ({"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}, "structured_outputs", "guided_choice says"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "supports json"),
        ({"structured_outputs": {"whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern", "supports json"),
        ({"guided_choice": ["a"], "tools": [TIME], "tool_choice": "required"}, "tool_choice", "guided_choice says"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "",
        ),
        ({"tools": [TIME], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "one of the tools"),
    ],
)
async def test_what_is_asked_for_wrongly_is_named(talking: Any, body: dict[str, Any], param: str, says: str) -> None:
    async with talking(**ROOM) as (_, running):
        answer = await running.http.post("/v1/chat/completions", json={"messages": asked("x"), **GREEDY} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: found ")
    assert says in error["message"]


async def test_hostile_schemas_hold_up_nobody(talking: Any) -> None:
    joined = {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(40)]}
    deep = '{"items":' * 900 + "{}" + "}" * 900
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "guided_json": {deep}}}'
    async with talking(**ROOM) as (client, running), asyncio.timeout(60):
        hostile = [running.http.post("/v1/chat/completions", content=body) for _ in range(4)]
        hostile += [running.http.post("/v1/completions", json={"prompt": "x", "guided_json": joined}) for _ in range(4)]
        answers, said = await asyncio.gather(
            asyncio.gather(*hostile), client.chat.completions.create(messages=asked("Hello"), **GREEDY)
        )
    assert [answer.status_code for answer in answers] == [400] * 8
    assert said.choices[0].message.content
