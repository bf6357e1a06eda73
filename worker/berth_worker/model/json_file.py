"""What does this JSON file of a checkpoint say?  Read with bounds: size, depth, kinds of values and their ranges."""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any, NoReturn

from berth_worker.model.interface import ModelError

__all__ = ["Fields", "parse_object", "read_object", "shown"]

_MEBIBYTE = 1 << 20
_shown = reprlib.Repr()
_shown.maxstring, _shown.maxother, _shown.maxlevel = 120, 120, 3


def shown(value: object) -> str:
    """repr() for a message: short, however long or deep the value is."""
    return _shown.repr(value)


def read_object(path: Path, *, limit: int = 4 * _MEBIBYTE) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes.  Raises ModelError naming the file."""
    try:
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise ModelError(f"{path}: found more than {limit:,} bytes; at most that many are right")
    return parse_object(content, str(path))


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object; every name once, no NaN.  Raises ModelError that begins with `what`."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, an integer of 5,000 digits
        raise ModelError(f"{what}: not JSON: {str(error) or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{what}: found a {type(value).__name__}; a JSON object is right")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}")


class Fields:
    """The fields of a JSON object, fetched by kind and range.  Raises ModelError naming file, field, found and right.

    A field that is absent or null takes the default; without one it must be there.
    """

    def __init__(self, values: dict[str, Any], path: Path, prefix: str = "") -> None:
        self.values, self.path, self.prefix = values, path, prefix

    def refuse(self, name: str, right: str) -> NoReturn:
        """Raises ModelError: what was found in the field, and what is right."""
        raise ModelError(f"{self.path}: {self.prefix}{name}: found {shown(self.values.get(name))}; {right}")

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, f"an integer from {low} to {high} is right")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            self.refuse(name, f"a number from {low:g} to {high:g} is right")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false is right")
        return value

    def object(self, name: str) -> Fields | None:
        """The fields of an object in a field; None if it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, "an object is right")
        return Fields(value, self.path, f"{self.prefix}{name}.")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.path}: {self.prefix}{name}: not there; a Llama needs it")
        return math.inf if isinstance(value, int) and abs(value) > 1 << 63 else value
