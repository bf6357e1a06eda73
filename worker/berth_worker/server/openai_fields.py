"""What is in a JSON object that a client sent?  Typed access, and errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from berth_worker.engine.params import InvalidRequestError

__all__ = ["Fields", "shown"]


class Fields:
    """Typed access to a JSON object; null counts as absent."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self.path = values, path

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def refuse(self, name: str, right: str) -> NoReturn:
        raise InvalidRequestError(self.path + name, f"found {shown(self._values.get(name))}; {right}")

    def number(self, name: str) -> float | None:
        value = self.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.refuse(name, "a number is right")
        try:
            return None if value is None else float(value)
        except OverflowError:
            self.refuse(name, "a smaller number is right")

    def integer(self, name: str) -> int | None:
        value = self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.refuse(name, "a whole number is right")
        return value

    def boolean(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "true or false is right")
        return bool(value)

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "text is right")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            self.refuse(name, "a list is right")
        return value or []

    def objects(self, name: str) -> list[tuple[Fields, dict[str, Any]]]:
        found = []
        for index, item in enumerate(self.items(name)):
            path = f"{self.path}{name}[{index}]"
            if not isinstance(item, dict):
                raise InvalidRequestError(path, f"found {shown(item)}; an object is right")
            found.append((Fields(item, path + "."), item))
        return found

    def object(self, name: str) -> tuple[Fields, dict[str, Any]]:
        value = self.get(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object is right")
        return Fields(value, f"{self.path}{name}."), value


def shown(value: Any) -> str:
    """As JSON, cut where it is long."""
    text = "nothing" if value is None else ""
    if value is not None:
        for piece in json.JSONEncoder().iterencode(value[:80] if isinstance(value, str) else value):
            text += piece
            if len(text) > 80:
                break
    return text if len(text) <= 80 else text[:77] + "..."
