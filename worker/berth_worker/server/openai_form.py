"""What does an OpenAI client say its answer has to look like?  response_format or text.format, and what vLLM has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from berth_worker.server.openai_fields import Fields

__all__ = ["Form", "form_of", "read_form"]

Kind = Literal["json", "regex", "choice"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_OBJECT = {"type": "object"}
_HARMLESS = ("disable_fallback", "disable_any_whitespace")
"""Of structured_outputs: what is so here."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to be."""

    kind: Kind
    value: Any
    """A JSON schema; a regular expression; texts."""
    field: str
    """Of the request, which says so."""
    calls: bool = False
    """Whether the answer may call tools instead."""


def read_form(fields: Fields, *, text: bool = False) -> Form | None:
    """None: any text.  text: the Responses API's text.format takes the place of response_format.

    Raises InvalidRequestError, also where two fields say what the answer has to be.
    """
    first: Form | None = None
    for name, form in _forms(fields, text):
        if first is not None:
            fields.refuse(name, f"{first.field} says already what the answer has to be; one of them is right")
        first = form
    return first


def _forms(fields: Fields, text: bool) -> Iterator[tuple[str, Form]]:
    outer = fields.object("text")[0] if text and fields.get("text") is not None else fields
    name = "format" if text else "response_format"
    if outer.get(name) is not None and (form := _format(outer.object(name)[0], flat=text)) is not None:
        yield name, form
    for kind in _KINDS:
        name = f"guided_{kind}"
        if fields.get(name) is not None:
            yield name, form_of(fields, name, kind)
    if fields.get("structured_outputs") is None:
        return
    inner, values = fields.object("structured_outputs")
    for kind in _KINDS:
        if inner.get(kind) is not None:
            yield "structured_outputs", form_of(inner, kind, kind)
    for name in values:
        if name == "json_object":
            if inner.boolean(name):
                yield "structured_outputs", Form("json", _OBJECT, inner.path + name)
        elif inner.get(name) and name not in _KINDS + _HARMLESS:
            inner.refuse(name, "this worker supports json, json_object, regex and choice")


def _format(inner: Fields, *, flat: bool) -> Form | None:
    """flat: a schema and its name stand beside the type."""
    kind = inner.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Form("json", _OBJECT, inner.path + "type", calls=True)
    if kind != "json_schema":
        inner.refuse("type", "'text', 'json_object' or 'json_schema' is right")
    described = inner if flat else inner.object("json_schema")[0]
    described.boolean("strict")
    return Form("json", described.object("schema")[1], described.path + "schema", calls=True)


def form_of(fields: Fields, name: str, kind: Kind) -> Form:
    """What a field asks for that is a schema, as an object or as text, an expression, or texts."""
    value = fields.get(name)
    if kind == "json":
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                fields.refuse(name, "a JSON schema is right, as an object or as text")
        if not isinstance(value, dict):
            fields.refuse(name, "a JSON schema is right, as an object or as text")
    elif kind == "regex":
        value = fields.text(name)
        if not value:
            fields.refuse(name, "a regular expression is right")
    else:
        value = fields.items(name)
        if not value or not all(isinstance(item, str) and item for item in value):
            fields.refuse(name, "texts that are not empty are right")
    return Form(kind, value, fields.path + name)
