"""Is a tool call found where a model makes one, however its text is cut, and is all else text?"""

from __future__ import annotations

import itertools
import json

import hypothesis.strategies as st
import pytest
from berth_worker.server.tool_calls import ForcedCall, ToolCall, ToolText
from hypothesis import given, settings

OSLO = ToolCall("weather", '{"city": "Oslo"}')
TIME = ToolCall("time", "{}")
NOTE = ToolCall("note", '{"text": "</tool_call> ends"}')


def read(*pieces: str) -> list[str | ToolCall]:
    """All that comes of the pieces, neighbouring text joined."""
    text = ToolText(["weather", "time"])
    found: list[str | ToolCall] = []
    for item in [item for piece in pieces for item in text.push(piece)] + text.flush():
        if found and isinstance(item, str) and isinstance(found[-1], str):
            found[-1] += item
        else:
            found.append(item)
    return found


ANSWERS: list[tuple[str, list[str | ToolCall]]] = [
    ("", []),
    ("It rains in Oslo.", ["It rains in Oslo."]),
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', [OSLO]),
    ('\n\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n', [OSLO]),
    ('Let me see. <tool_call>{"name": "time", "arguments": {}}</tool_call>', ["Let me see. ", TIME]),
    (
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n'
        '<tool_call>{"name": "time"}</tool_call>',
        [OSLO, TIME],
    ),
    ('<tool_call>[{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "time"}]</tool_call>', [OSLO, TIME]),
    ('<tool_call>{"name": "time"}</tool_call> Done.', [TIME, " Done."]),
    ('<tool_call>{"name": "time"}', [TIME]),  # the model ended its turn instead
    ('<tool_call>{"name": "time"</tool_call>', ['<tool_call>{"name": "time"</tool_call>']),
    ('<tool_call>{"name": "note", "arguments": {"text": "</tool_call> ends"}}</tool_call> Done.', [NOTE, " Done."]),
    ('<tool_call>{"name": "note", "arguments": {"text": "</tool_call> ends"}}', [NOTE]),
    (
        '<tool_call>{"name": "note", "arguments": {"text": "\\"</tool_call></tool_call>"}}\n</tool_call>'
        '<tool_call>{"name": "time"}</tool_call>',
        [ToolCall("note", '{"text": "\\"</tool_call></tool_call>"}'), TIME],
    ),
    (
        '<tool_call>\n{"name": "note", "arguments": {"text": "a\nb\tc"}}\n</tool_call>',
        [ToolCall("note", '{"text": "a\\nb\\tc"}')],
    ),
    (  # a string that never ends: what comes after the first tag is read all the same
        '<tool_call>{"name": "note</tool_call> <tool_call>{"name": "time"}</tool_call>',
        ['<tool_call>{"name": "note</tool_call> ', TIME],
    ),
    ('<tool_call>{"name": "note</tool_call>  so', ['<tool_call>{"name": "note</tool_call>  so']),
    ("<tool_call>now</tool_call> or <tool_", ["<tool_call>now</tool_call> or <tool_"]),
    ("a < b <tool_cal", ["a < b <tool_cal"]),
    ('{"name": "weather", "parameters": {"city": "Oslo"}}', [OSLO]),
    ('{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "time", "parameters": {}}', [OSLO, TIME]),
    ('{"type": "function", "name": "time", "parameters": {}}', [TIME]),
    ('{"type": "function", "function": {"name": "time", "arguments": {}}}', [TIME]),
    ('{"type": "function", "function": "time", "parameters": {}}', [TIME]),
    ('{"name": "Ada", "age": 36}', ['{"name": "Ada", "age": 36}']),
    ('{"name": "weather", "parameters": ', ['{"name": "weather", "parameters": ']),
    ('{"city": "Oslo"}', ['{"city": "Oslo"}']),
    ('{"name": "weather", "parameters": "{\\"city\\": \\"Oslo\\"}"}', [OSLO]),
    ('{"name": "weather", "parameters": {"city": "\\ud83d"}}', [ToolCall("weather", '{"city": "\ufffd"}')]),
    ('{"name": "weather", "parameters": {"city": "\\ud83d\\ude00"}}', [ToolCall("weather", '{"city": "😀"}')]),
    ('<tool_call>{"name": "\\udc00"}</tool_call>', [ToolCall("\ufffd", "{}")]),
    ('<tool_call>{"name": "time", "arguments": null}</tool_call>', [TIME]),
    ('{"name": "time", "parameters": ""}', [TIME]),
    ("{ x", ["{ x"]),
    ("   ", ["   "]),
    ("[" * 5000, ["[" * 5000]),
    ("<tool_call>" + "[" * 5000, ["<tool_call>" + "[" * 5000]),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_calls_are_found_in_the_forms_of_the_families_and_all_else_is_text(
    answer: str, expected: list[str | ToolCall]
) -> None:
    assert read(answer) == expected


@settings(max_examples=300)
@given(st.sampled_from([answer for answer, _ in ANSWERS if len(answer) < 200]), st.lists(st.integers(0, 120)))
def test_it_does_not_matter_how_the_text_is_cut(answer: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    pieces = [answer[a:b] for a, b in itertools.pairwise(places)]
    assert read(*pieces) == read(answer)


@given(st.text(st.sampled_from('<tool_cal>/{}"name: ;\n'), max_size=60))
def test_text_without_a_whole_call_comes_out_as_it_is(text: str) -> None:
    found = read(text)
    if all(isinstance(item, str) for item in found):
        assert "".join(map(str, found)) == text


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        (' {"city": "Oslo"}}\n</tool_call>', '{"city": "Oslo"}'),
        ('{"city": "</tool_call>"}}', '{"city": "</tool_call>"}'),
        (' {"city": "Os\nlo"}}</tool_call><tool_call>{"name": "time"}</tool_call>', '{"city": "Os\\nlo"}'),
        (' "{}"}', "{}"),
        (" null}", "{}"),
        ("", "{}"),
        (' {"city": "Os', '{"city": "Os'),
        (" Oslo\n</tool_call>", "Oslo"),
        ("[" * 5000, "[" * 5000),
        ('{"city": "\\ud83d"}', '{"city": "\ufffd"}'),
    ],
)
def test_an_answer_begun_as_a_call_is_that_call(said: str, arguments: str) -> None:
    text = ForcedCall("weather")
    assert [item for character in said for item in text.push(character)] == []
    assert text.flush() == [ToolCall("weather", arguments)]


def test_what_cannot_be_a_call_does_not_wait() -> None:
    text = ToolText(["time"])
    assert text.push("Hello") == ["Hello"]
    assert text.push(", <b>you</b>") == [", <b>you</b>"]
    assert text.push(" <tool") == [" "]
    assert text.push("box>") == ["<toolbox>"]
    other = ToolText(["time"])
    assert other.push('{"city') == ['{"city']
    assert json.loads('{"city' + "".join(map(str, other.push('": 1}')))) == {"city": 1}
