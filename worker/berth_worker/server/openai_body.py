"""What is in the body of a request?  A JSON object of Unicode text, or an error that says why not."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from berth_worker.engine.params import InvalidRequestError
from berth_worker.server.openai_fields import shown

__all__ = ["parse_body"]


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises InvalidRequestError."""
    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)  # given bytes it lets surrogates pass
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("body", f"no JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequestError("body", f"found {shown(body)}; a JSON object is right")
    if b"\\ud" in raw.lower():
        _check_text(body, "body")
    return body


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
