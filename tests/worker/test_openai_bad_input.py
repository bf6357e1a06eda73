"""Is what no OpenAI client should send refused by name, and does the worker go on serving?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from berth_worker.engine.params import InvalidRequestError
from berth_worker.server import openai_body
from berth_worker.server.openai_asked import Asked
from berth_worker.server.openai_body import parse_body
from berth_worker.server.openai_request import read_chat, read_completion
from hypothesis import given, settings
from hypothesis import strategies as st

OTHER: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
FORCED: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
TEXT: dict[str, Any] = {"prompt": "x"}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (TEXT | {"temperature": "hot"}, "temperature", 'found "hot"; a number is right'),
        (TEXT | {"temperature": 3}, "temperature", "3 is out of range"),
        (TEXT | {"temperature": True}, "temperature", "a number is right"),
        (TEXT | {"temperature": 10**400}, "temperature", "a smaller number"),
        (TEXT | {"max_tokens": 0}, "max_tokens", "0 is out of range; at least 1"),
        (TEXT | {"max_tokens": 1000}, "max_tokens", "1000 is out of range; 1 to 511"),
        (CHAT | {"max_tokens": 1000}, "max_tokens", "is out of range; 1 to"),
        (CHAT | {"max_completion_tokens": 1.5}, "max_completion_tokens", "a whole number is right"),
        (CHAT | {"max_completion_tokens": 9999}, "max_completion_tokens", "is out of range; 1 to"),
        (TEXT | {"max_tokens": 511, "prompt": "x y"}, "max_tokens", "511 is out of range; 1 to 510 after a prompt"),
        (TEXT | {"max_tokens": -(10**400)}, "max_tokens", "is out of range; at least 1"),
        (TEXT | {"logprobs": 10**400}, "logprobs", "is out of range; 0"),
        (TEXT | {"repetition_penalty": 1e-40}, "repetition_penalty", "is out of range; above 0"),
        (TEXT | {"n": 17}, "n", "1 to 16 answers"),
        (TEXT | {"n": 0}, "n", "1 to 16 answers"),
        (TEXT | {"top_k": -2}, "top_k", "-2 is out of range; 0 (off)"),
        (TEXT | {"best_of": 3}, "best_of", "the value of n is right"),
        (TEXT | {"stop": [1]}, "stop[0]", "text is right"),
        (TEXT | {"stop": ""}, "stop[0]", "0 characters"),
        (TEXT | {"logit_bias": {"a": 1}}, "logit_bias", 'the key "a"'),
        (TEXT | {"logit_bias": {"5": 200}}, "logit_bias[5]", "200 is out of range"),
        (TEXT | {"logit_bias": {"99999": 1}}, "logit_bias[99999]", "no such token"),
        (TEXT | {"logprobs": 21}, "logprobs", "21 is out of range"),
        (TEXT | {"stream_options": {}}, "stream_options", "only with stream"),
        (TEXT | {"stream": "yes"}, "stream", "true or false"),
        (TEXT | {"echo": True}, "echo", "does not support it"),
        (TEXT | {"session_id": "x" * 257}, "session_id", "257 characters; at most 256"),
        ({"prompt": ""}, "prompt[0]", "a text or a list of tokens is right"),
        ({"prompt": []}, "prompt", "are right"),
        ({"prompt": [1, "a"]}, "prompt[0]", "a text or a list of tokens is right"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]", "a token's number is right"),
        ({"prompt": [5, 99999]}, "prompt[1]", "token 99999 is out of range"),
        ({"prompt": [5] * 600}, "prompt", "600 tokens are too many; at most 511"),
        ({"prompt": "word " * 200_000}, "prompt", "more than 1022 tokens are too many; at most 511"),
        ({"prompt": "\ud800"}, "prompt", "half of a surrogate pair"),
        ({}, "prompt", "found nothing"),
        (CHAT | {"top_logprobs": 2}, "top_logprobs", "logprobs must be true"),
        (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21 is out of range"),
        (CHAT | {"guided_grammar": "root ::= 'a'"}, "guided_grammar", "does not support it"),
        (CHAT | {"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        (CHAT | {"tool_choice": "required"}, "tool_choice", "'auto', 'none', 'required'"),
        (CHAT | {"tool_choice": FORCED, "tools": [OTHER]}, "tool_choice", "one of the tools"),
        (CHAT | {"tool_choice": {"type": "function"}, "tools": [OTHER]}, "tool_choice.function", "an object is right"),
        (CHAT | {"tool_choice": {"type": "custom"}, "tools": [OTHER]}, "tool_choice", "one of the tools"),
        (CHAT | {"tools": [{"type": "web"}]}, "tools[0].type", "'function' is right"),
        (CHAT | {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "not empty"),
        (
            CHAT | {"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]},
            "tools[0].function.strict",
            "true or false is right",
        ),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": ["hi"]}, "messages[0]", "an object is right"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "one of system, developer"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "found nothing; text is right"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal"}]}]},
            "messages[0].content[0].type",
            "'text' is",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "refusal", "text": "x"}]}]},
            "messages[0].content[0].refusal",
            "text is right",
        ),
        ({"messages": [{"role": "user", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function", "an object"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages[0].content", "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "tokens are too many"),
    ],
)
async def test_what_is_wrong_is_named(one_worker: Any, body: dict[str, Any], param: str, says: str) -> None:
    path = "/v1/completions" if "messages" not in body else "/v1/chat/completions"
    answer = await asyncio.to_thread(httpx.post, one_worker + path, content=json.dumps(body), timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")
    assert says in error["message"]
    too_long = "too many" in says or "after a prompt" in says
    assert error["code"] == ("context_length_exceeded" if too_long else None)
    assert ("This model's maximum context length is 512 tokens." in error["message"]) is too_long, "as clients look for"


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"", 400, "body: no JSON"),
        (b"[1]", 400, "body: found [1]; a JSON object is right"),
        (b'{"temperature": NaN}', 400, "body: no JSON: NaN"),
        (b"[" * 100_000, 400, "body: no JSON"),
        (b'{"seed": ' + b"1" * 5000 + b"}", 400, "body: no JSON"),
        (b"\xff", 400, "body: no JSON"),
        (b'{"prompt": "\xed\xa0\x80"}', 400, "body: no JSON"),
        (b" " * ((16 << 20) + 1), 413, "body: more than 16777216 bytes"),
    ],
)
async def test_a_body_that_is_none_is_refused(one_worker: Any, raw: bytes, status: int, says: str) -> None:
    answer = await asyncio.to_thread(httpx.post, one_worker + "/v1/completions", content=raw, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(says)


MANY = 16 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": [' + b"[]," * (MANY // 3 - 9) + b"[]]}",
        b'{"prompt": "x", "logit_bias": {' + b",".join(b'"%d":1' % token for token in range(900_000)) + b"}}",
        b'{"prompt": [' + b"1.5," * (MANY // 4 - 9) + b"1]}",
        b'{"prompt": [' + b'"",' * (MANY // 3 - 9) + b'""]}',
        b'{"prompt": "' + b"," * 500_001 + b'"' + b'""' * (MANY // 2 - 300_000) + b"}",
        b'{"prompt": "\\\\", "x": [' + b"{}," * 100_000 + b"{}]}",
    ],
    ids=["lists", "biases", "numbers", "texts", "texts alone", "behind an escape"],
)
async def test_a_body_of_very_many_values_is_refused_undecoded(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_body.json, "loads", None)  # it holds Python's lock
    assert len(raw) <= MANY
    with pytest.raises(InvalidRequestError, match=r"body: more than 100,000 objects, lists and fields, or 500,000 val"):
        parse_body(raw)


def test_text_is_no_value_whatever_is_in_it() -> None:
    text = '{[,:"\\é]}\n' * 60_000 + "\\"
    for ensure_ascii in (False, True):
        for inner in (text, text + " " * ((1 << 18) - 1), "a" * 7 + text):
            body = {"prompt": inner, "stop": [inner, "b"]}
            assert parse_body(json.dumps(body, ensure_ascii=ensure_ascii).encode()) == body
    with pytest.raises(InvalidRequestError, match="no JSON"):
        parse_body(json.dumps({"prompt": text}).encode()[:-2])


async def test_however_deep_a_tool_is_nested_the_worker_does_not_fail(one_worker: Any) -> None:
    async with httpx.AsyncClient(base_url=one_worker, timeout=60) as http:
        for depth in range(900, 1000):
            schema = '{"a":' * depth + "1" + "}" * depth
            tools = '[{"type": "function", "function": {"name": "f", "parameters": ' + schema + "}}]"
            raw = '{"messages": [{"role": "user", "content": "x"}], "tools": ' + tools + "}"
            assert (await http.post("/v1/chat/completions", content=raw)).status_code == 400, "too long, or too deep"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("messages", "prompt", "temperature", "top_p", "n", "stop", "logprobs", "top_logprobs", "tools", "tool_choice"),
    *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "parallel_tool_calls"),
    *("stream", "stream_options", "seed", "logit_bias", "max_tokens", "model", "session_id", "stop_token_ids"),
]


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(st.sampled_from(FIELDS), values, max_size=6), chat=st.booleans())
def test_any_json_is_read_or_refused_by_name(body: dict[str, Any], chat: bool) -> None:
    valid: dict[str, Any] = CHAT if chat else TEXT
    read: Callable[..., Asked] = read_chat if chat else read_completion
    for given_body in (body, valid | body):
        try:
            asked = read(parse_body(json.dumps(given_body).encode()))
        except ValueError as error:
            assert str(error).split(":")[0].split("[")[0].split(".")[0] in {*FIELDS, "best_of", "body"}, error
        else:
            assert asked.messages or asked.prompts
