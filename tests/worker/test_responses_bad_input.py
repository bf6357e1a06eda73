"""Is what /v1/responses does not do refused by name?"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from berth_worker.engine.request import InvalidRequestError
from berth_worker.server.responses_request import read_response
from hypothesis import given, settings
from hypothesis import strategies as st

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": CITY}


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
