"""What grammar is true to what a client asks for?  Schemas, choices and calls of tools, as text that `guidance` reads.

JSON comes in one line, with a space behind commas and colons, as models are trained to call tools: where white space is
free, small models go on with it for ever, and a key that is forced costs no step of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

__all__ = [
    "MOST_CALLS",
    "Call",
    "GrammarError",
    "arguments",
    "calls",
    "check_schema",
    "choice",
    "json_value",
    "json_value_or_calls",
    "text_with_calls",
    "text_without",
]

MOST_CALLS = 16
"""Of tools in an answer that has to call some: a small model may find no end by itself."""
_SHAPE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = r"/(.|\n)*/"
_OPTIONS = "x-guidance"
"""llguidance's own keyword, at the top of a schema."""

_CLOSED = {"type": "object", "additionalProperties": False}
_JOINING = ("allOf", "anyOf", "oneOf", "$ref")
_MOST_INTEGER = 9 * 10**18
"""Of 64 bits; llguidance cannot count to quite as many."""
_NUMBERED = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", *_JOINING)
_DEFINITIONS = ("$defs", "definitions")
_MAPS = ("properties", "patternProperties", *_DEFINITIONS)
"""Keywords whose values have a schema for each name."""
_SCHEMAS = ("allOf", "anyOf", "oneOf", "items", "prefixItems", "additionalProperties")
"""Keywords whose values are schemas."""
_OPEN = (
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "minProperties",
    "if",
    "dependentSchemas",
)
"""Keywords that say more of which properties there may be."""
_DEEPEST = 100
_MOST_PROPERTIES = 1000
_MOST_JOINED = 10
_MOST_MULTIPLE = 10_000
_BESIDE = frozenset(
    ("title", "description", "default", "examples", "discriminator", *_DEFINITIONS, "$schema", "$id", "$comment")
)
"""Keywords that ask for nothing."""


class GrammarError(ValueError):
    """A grammar that cannot be kept to, and why."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one tool, as the model's template has it."""

    name: str
    before: str
    """What stands before the arguments."""
    after: str
    schema: Mapping[str, Any]
    """Of the arguments."""
    strict: bool
    """Whether a schema that cannot be kept to is refused, rather than kept to as far as it can be."""
    tag: str = ""
    """What `before` begins with, and no text; empty: an answer that calls a tool begins with a brace."""


def check_schema(schema: Any) -> None:
    """Raises GrammarError for what takes llguidance, which cannot be interrupted, seconds or for ever to read: the time
    grows with the square of the properties (0.1 s for 1000), doubles with each pattern of those that must all hold, and
    grows with what numbers are multiples of (0.1 s for 10,000).  And what is nested too deep fails readers that call
    themselves.
    """
    properties, patterns, joins = 0, 0, False
    multiples: list[Decimal] = []
    left = [(schema, 1)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise GrammarError(f"found more than {_DEEPEST} levels; fewer are right")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(item, depth + 1) for item in inner]
        if not isinstance(value, dict):
            continue
        for name in ("properties", "patternProperties"):
            properties += len(value[name]) if isinstance(value.get(name), dict) else 0
        patterns += sum(isinstance(value.get(name), str) for name in ("pattern", "format"))
        step = value.get("multipleOf")
        if isinstance(step, int | float) and not isinstance(step, bool):
            multiples.append(abs(Decimal(str(step))).normalize())
        joins |= _joins(value)
    if properties > _MOST_PROPERTIES:
        raise GrammarError(f"found {properties} properties; at most {_MOST_PROPERTIES} are right")
    if joins and patterns > _MOST_JOINED:
        raise GrammarError(
            f"found {patterns} patterns and formats, and schemas that must hold together (allOf, or one of "
            f"{', '.join(_JOINING[1:])} beside other keywords); at most {_MOST_JOINED} are right there"
        )
    if (_common_multiple(multiples) if joins else max(map(_digits, multiples), default=0)) > _MOST_MULTIPLE:
        raise GrammarError(
            f"found multipleOf above {_MOST_MULTIPLE}, decimal point aside, in one schema or in those that must hold "
            f"together; at most {_MOST_MULTIPLE} are right"
        )


def _digits(number: Decimal) -> int:
    return int("".join(map(str, number.as_tuple().digits)))


def _common_multiple(numbers: Sequence[Decimal]) -> int:
    """The least of all, in units of their last decimal."""
    exponents = [int(number.as_tuple().exponent) for number in numbers]
    last = min(exponents, default=0)
    return math.lcm(*(_digits(n) * 10 ** (e - last) for n, e in zip(numbers, exponents, strict=True)))


def json_value(schema: Mapping[str, Any], *, strict: bool = True) -> str:
    """A value of this schema."""
    return f"start: {_json(schema, strict)}"


def choice(texts: Sequence[str]) -> str:
    """One of these texts."""
    return "start: " + " | ".join(map(_literal, texts))


def arguments(call: Call) -> str:
    """The arguments alone, in an answer whose prompt has begun the call."""
    return f'start: " " {_json(call.schema, call.strict)}'


def calls(tools: Sequence[Call], *, several: bool) -> str:
    """A call of one of the tools, or several."""
    return f"start: calls\n{_calls(tools, several)}"


def json_value_or_calls(schema: Mapping[str, Any], tools: Sequence[Call], *, several: bool) -> str:
    """A value of the schema, or calls of tools."""
    if tools[0].tag:
        return f"start: calls | {_json(schema, strict=True)}\n{_calls(tools, several)}"
    # Both begin with a brace: only as one schema are they told apart.  An $id each keeps references where they are.
    # Where some tool is not strict, the whole is not: whether the value's schema can be kept to is for others to ask.
    options = [{"$id": "berth:///answer"} | dict(schema)]
    for index, tool in enumerate(tools):
        found = {"$id": f"berth:///tool/{index}"} | dict(tool.schema)
        properties = {"name": {"const": tool.name}, "parameters": found}
        options.append(_CLOSED | {"properties": properties, "required": list(properties)})
    return json_value({"anyOf": options}, strict=all(tool.strict for tool in tools))


def text_with_calls(tools: Sequence[Call]) -> str:
    """Any text, with calls of tools that are true to their schemas."""
    if not tools[0].tag:
        return f"start: calls | TEXT\nTEXT: /([^{{](.|\\n)*)?/\n{_calls(tools, several=True)}"
    lines = ["start: call* rest", f"rest: {_TEXT}", "call: " + " | ".join(f"c{i}" for i in range(len(tools)))]
    lines.append(f"head[lazy]: {_TEXT[:-1]}{tools[0].tag}/")
    for i, tool in enumerate(tools):
        lines.append(f"c{i}: head {_call(tool, tool.before.removeprefix(tool.tag))}")
    return "\n".join(lines)


def text_without(tag: str) -> str:
    """Any text in which this does not stand."""
    return f"start: TEXT\nTEXT: {_TEXT} & ~{_TEXT[:-1]}{re.escape(tag)}(.|\\n)*/"


def _calls(tools: Sequence[Call], several: bool) -> str:
    more = f" ({_literal(chr(10) if tools[0].tag else '; ')} call){{0,{MOST_CALLS - 1}}}" if several else ""
    lines = [f"calls: call{more}", "call: " + " | ".join(f"c{i}" for i in range(len(tools)))]
    return "\n".join([*lines, *(f"c{i}: {_call(tool, tool.before)}" for i, tool in enumerate(tools))])


def _call(tool: Call, before: str) -> str:
    return f"{_literal(before + ' ')} {_json(tool.schema, tool.strict)} {_literal(tool.after)}"


def _json(schema: Mapping[str, Any], strict: bool) -> str:
    options = _SHAPE | ({} if strict else {"lenient": True})
    return "%json " + json.dumps(_narrowed(schema, True, not _shared(schema)) | {_OPTIONS: options})


def _narrowed(schema: Any, alone: bool, defined: bool) -> Any:
    """The schema without what a small model finds no end in: objects that list their properties have no others, unless
    they say so, and integers without bounds have 19 digits at most.

    alone: no other schema has to hold of the value, which may list what this one does not; defined: nor of what is
    defined apart.
    """
    if not isinstance(schema, Mapping):
        return schema
    alone = alone and not _joins(schema)
    found = dict(schema)
    for name, value in schema.items():
        if name in _MAPS and isinstance(value, Mapping):
            apart = defined if name in _DEFINITIONS else alone
            found[name] = {key: _narrowed(item, apart, defined) for key, item in value.items()}
        elif name in _SCHEMAS and isinstance(value, list):
            found[name] = [_narrowed(item, alone, defined) for item in value]
        elif name in _SCHEMAS:
            found[name] = _narrowed(value, alone, defined)
    if schema.get("type") == "integer" and not any(name in schema for name in _NUMBERED):
        found |= {"minimum": -_MOST_INTEGER, "maximum": _MOST_INTEGER}
    listed, needed = schema.get("properties"), schema.get("required", [])
    closes = (
        isinstance(listed, Mapping)
        and isinstance(needed, list)
        and all(isinstance(name, str) and name in listed for name in needed)
    )
    if alone and closes and not any(name in schema for name in _OPEN):
        found["additionalProperties"] = False
    return found


def _joins(schema: Mapping[str, Any]) -> bool:
    """Whether several schemas have to hold of one value."""
    joining = sum(name in schema for name in _JOINING)
    options = schema.get("allOf")
    several = isinstance(options, list) and len(options) > 1
    return several or (joining > 0 and len(schema.keys() - _BESIDE) > 1)


def _shared(schema: Any, joined: bool = False) -> bool:
    """Whether what is defined apart has to hold together with another schema somewhere."""
    if isinstance(schema, list):
        return any(_shared(item, joined) for item in schema)
    if not isinstance(schema, Mapping):
        return False
    joined = joined or _joins(schema)
    return (joined and "$ref" in schema) or any(_shared(item, joined) for item in schema.values())


def _literal(text: str) -> str:
    return json.dumps(text)
