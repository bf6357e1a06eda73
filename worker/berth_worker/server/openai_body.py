"""What is in the body of a request?  A JSON object of Unicode text, or an error that says why not.

Python decodes JSON without letting go of its lock, and all streams stand still meanwhile: up to a microsecond for each
small value, so over a second for 16 MB of them, where as much text takes 0.02.  So values are counted before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from berth_worker.engine.params import InvalidRequestError
from berth_worker.server.openai_fields import shown

__all__ = ["parse_body"]

MAX_VALUES = 500_000
"""Tokens of a prompt, as numbers, are most of what comes in such a number."""
MAX_PARTS = 100_000
"""Objects, lists, and fields of objects; ten times as many as a conversation of thousands of turns has."""
WINDOW = 1 << 18
"""Bytes of a string that are looked through at a time, 2 ms, for the same reason."""
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises InvalidRequestError."""
    _check_size(raw)
    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)  # given bytes it lets surrogates pass
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("body", f"no JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequestError("body", f"found {shown(body)}; a JSON object is right")
    if b"\\ud" in raw.lower():
        _check_text(body, "body")
    return body


def _check_size(raw: bytes) -> None:
    """Raises InvalidRequestError for more values than are decoded in a moment."""
    if len(raw) <= MAX_PARTS or not _too_many(*_marks(raw)):  # those in texts included
        return
    values = parts = 0
    for strings, outside in enumerate(_outside_of_strings(raw)):
        more, begun = _marks(outside)
        values, parts = values + more, parts + begun
        if _too_many(values, parts) or strings > MAX_VALUES + MAX_PARTS:
            raise InvalidRequestError(
                "body", f"more than {MAX_PARTS:,} objects, lists and fields, or {MAX_VALUES:,} values; fewer are right"
            )


def _too_many(values: int, parts: int) -> bool:
    return values > MAX_VALUES or parts > MAX_PARTS


def _marks(raw: bytes) -> tuple[int, int]:
    """What divides values, and what begins objects, lists and values of fields."""
    return raw.count(b","), raw.count(b"[") + raw.count(b"{") + raw.count(b":")


def _outside_of_strings(raw: bytes) -> Iterator[bytes]:
    at = 0
    while (quote := raw.find(b'"', at)) >= 0:
        yield raw[at:quote]
        at = _end_of_string(raw, quote + 1)
    yield raw[at:]


def _end_of_string(raw: bytes, at: int) -> int:
    """Where the text goes on behind the string that `at` is inside of."""
    while True:
        end = _INSIDE.match(raw, at, at + WINDOW).end()  # type: ignore[union-attr]  # it always matches
        if end == at or raw[end : end + 1] == b'"':
            return end + 1
        at = end


def _check_text(value: Any, path: str) -> None:
    """Raises InvalidRequestError where half of a surrogate pair stands alone: no tokenizer takes it."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            _check_text(item, key if path == "body" else f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_text(item, f"{path}[{index}]")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequestError(
            path.encode("utf-8", "replace").decode(), "found half of a surrogate pair; Unicode text is right"
        )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
