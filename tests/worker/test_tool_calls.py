"""Is a tool call found where a model makes one, however its text is cut, and is all else text?"""

from __future__ import annotations

import itertools
import json

import hypothesis.strategies as st
import pytest
from berth_worker.server.tool_calls import Arguments, ForcedCall, ToolCall, ToolText
from hypothesis import given, settings

OSLO = ToolCall("weather", '{"city": "Oslo"}')
TIME = ToolCall("time", "{}")
NOTE = ToolCall("note", '{"text": "</tool_call> ends"}')


def read(text: ToolText | ForcedCall, *pieces: str) -> list[str | ToolCall]:
    """All that comes of the pieces, neighbouring text and a call's arguments joined."""
    found: list[str | ToolCall] = []
    for item in [item for piece in pieces for item in text.push(piece)] + text.flush():
        last = found[-1] if found else None
        if isinstance(item, Arguments):
            assert isinstance(last, ToolCall)
            found[-1] = ToolCall(last.name, last.arguments + item.text)
        elif isinstance(item, str) and isinstance(last, str):
            found[-1] = last + item
        else:
            found.append(item)
    return found


def tools(*, sure: bool = False) -> ToolText:
    return ToolText(["weather", "time"], sure=sure)


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
    (  # from here on it is a call, as far as it comes
        '<tool_call>{"name": "note", "arguments": {"text": "Dear',
        [ToolCall("note", '{"text": "Dear')],
    ),
    (
        '<tool_call>{"name": "note", "arguments": {"text": "Dear</tool_call> so',
        [ToolCall("note", '{"text": "Dear</tool_call> so')],
    ),
    (
        '<tool_call>{"name": "weather", "arguments": {"city": Oslo</tool_call> Done.',
        [ToolCall("weather", '{"city": Oslo'), " Done."],
    ),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}</tool_call>', [OSLO]),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}, "id": 7}</tool_call> Done.', [OSLO, " Done."]),
    (
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}; {"name": "time"}\n</tool_call> Done.',
        [OSLO, TIME, " Done."],
    ),
    (
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}\n<tool_call>{"name": "time"}</tool_call>',
        [OSLO, TIME],
    ),
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
    assert read(tools(), answer) == expected


@settings(max_examples=300)
@given(st.sampled_from([answer for answer, _ in ANSWERS if len(answer) < 200]), st.lists(st.integers(0, 120)))
def test_it_does_not_matter_how_the_text_is_cut(answer: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    pieces = [answer[a:b] for a, b in itertools.pairwise(places)]
    assert read(tools(), *pieces) == read(tools(), answer)


@given(st.text(st.sampled_from('<tool_cal>/{}"name: ;\n'), max_size=60))
def test_text_without_a_whole_call_comes_out_as_it_is(text: str) -> None:
    found = read(tools(), text)
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
    for pieces in ([said], list(said)):
        assert read(ForcedCall("weather"), *pieces) == [ToolCall("weather", arguments)]


ESCAPES = r'{"a": [1.50, {"b": null}], "\u00e9\/\\": "\ud83d\ude00\ud83d \udc00\ud83d\n\x <b> \"}"}'
READ = '{"a": [1.50, {"b": null}], "é/\\\\": "😀\ufffd \ufffd\ufffd\\n\\x <b> \\"}"}'


@pytest.mark.parametrize("end", ["}\n</tool_call>", "</tool_call>"])
def test_arguments_come_as_they_are_written_and_as_clients_read_them(end: str) -> None:
    text = tools()
    said = f'<tool_call>{{"name": "time", "arguments": {ESCAPES}{end} Done.'
    came = [text.push(character) for character in said]
    assert next(items for items in came if items) == [ToolCall("time", "{")]
    assert came[said.index("1.50")] == [Arguments("1")]
    assert read(tools(), said) == [ToolCall("time", READ), " Done."]
    assert read(ForcedCall("time"), *ESCAPES, *end) == [ToolCall("time", READ)]


def test_a_call_without_tags_comes_as_it_is_written_where_nothing_else_can() -> None:
    said = '{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "time", "parameters": {}}'
    unsure, sure = tools(), tools(sure=True)
    assert [item for character in said for item in unsure.push(character)] == []
    items = [item for character in said for item in sure.push(character)]
    assert items[:2] == [ToolCall("weather", "{"), Arguments('"')]
    assert ToolCall("time", "{") in items
    assert sure.flush() == []
    for pieces in ([said], list(said)):
        assert read(tools(sure=True), *pieces) == [OSLO, TIME]
    value = '{"name": "Ada", "parameters": {}}'
    assert read(tools(sure=True), *value) == [value]


def test_a_call_that_is_cut_before_its_arguments_is_no_text_where_it_could_be_nothing_else() -> None:
    said = 'So: <tool_call>\n{"name": "weather", "arg'
    assert read(tools(), said) == [said]
    assert read(tools(sure=True), said) == ["So: "]
    whole = '<tool_call>\n{"name": "time", "arguments": null}\n</tool_call>'
    assert read(tools(sure=True), whole) == [TIME]
    assert read(tools(sure=True), whole.removesuffix("\n</tool_call>")) == [TIME]


def test_what_cannot_be_a_call_does_not_wait() -> None:
    text = ToolText(["time"])
    assert text.push("Hello") == ["Hello"]
    assert text.push(", <b>you</b>") == [", <b>you</b>"]
    assert text.push(" <tool") == [" "]
    assert text.push("box>") == ["<toolbox>"]
    other = ToolText(["time"])
    assert other.push('{"city') == ['{"city']
    assert json.loads('{"city' + "".join(map(str, other.push('": 1}')))) == {"city": 1}
