"""Where in a model's text does it call a tool?  In the forms of the model families that we serve.

- `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, an object or a list of them: SmolLM2, Hermes, Qwen, and
  what we ask of models whose template knows no tools;
- `{"name": ..., "parameters": {...}}` as the whole answer, several one after the other or with `;` between: Llama 3.1,
  3.2 and 3.3.

Text is read as it comes: what cannot be a call is given out at once, and what does not become one is text after all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["OPEN", "ForcedCall", "ToolCall", "ToolText"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_KEYS = ('"name"', '"type"', '"function"')
"""What stands first in an answer that is a call as a whole."""
_SPACE = re.compile(r"[\s;]*")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool."""

    name: str
    arguments: str
    """JSON, as the model gave it."""


class ToolText:
    """One answer's text as it comes."""

    def __init__(self, names: Collection[str]) -> None:
        """names: the tools that there are; an answer that is JSON is a call only if it names one."""
        self._names = frozenset(names)
        self._held = ""
        self._inside = False
        """Between the tags of a call."""
        self._looked = 0
        """Of what is held inside, how much has no tag that ends the call."""
        self._whole = False
        """The answer may be a call as a whole."""
        self._beginning = True
        """Nothing came so far, or a call was the last that did: white space is held until it is known for what."""
        self._called = False

    def push(self, text: str) -> list[str | ToolCall]:
        """What is certain once this text is in, in order."""
        self._held += text
        return _joined(self._certain())

    def flush(self) -> list[str | ToolCall]:
        """What is left when the answer has ended."""
        found = list(self._certain(ended=True))
        held, self._held = self._held, ""
        calls = _calls(held)[0] if self._inside or self._whole else []
        if self._inside:
            held = OPEN + held
        elif not all(call.name in self._names for call in calls):
            calls = []
        if calls:
            found += calls
        elif held.strip() or (held and not self._called):
            found.append(held)
        return _joined(found)

    def _certain(self, *, ended: bool = False) -> Iterator[str | ToolCall]:
        while True:
            if self._inside:
                if (closed := self._closed(ended)) is None:
                    return
                at, calls = closed
                body, self._held = self._held[:at], self._held[at + len(CLOSE) :]
                self._inside, self._looked = False, 0
                self._beginning = self._called = self._called or bool(calls)
                if calls:
                    yield from calls
                else:
                    yield OPEN + body + CLOSE
                continue
            if self._beginning and self._at_beginning():
                return
            before, tag, rest = self._held.partition(OPEN)
            if not tag:
                keep = _overlap(self._held, OPEN)
                given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                if given:
                    yield given
                return
            self._inside, self._held = True, rest
            if before:
                yield before

    def _closed(self, ended: bool) -> tuple[int, list[ToolCall]] | None:
        """Where the tag begins that ends the call, and what is called; None as long as it has not come.

        A tag inside of a JSON string is text of an argument. What is no call ends at the first tag.
        """
        while (at := self._held.find(CLOSE, self._looked)) >= 0:
            calls, in_string = _calls(self._held[:at])
            if not in_string:
                return at if calls else self._held.find(CLOSE), calls
            self._looked = at + len(CLOSE)
        never = ended and self._looked > 0 and not _calls(self._held)[0]
        return (self._held.find(CLOSE), []) if never else None

    def _at_beginning(self) -> bool:
        """Whether to wait for more: white space is held, and what may be a call as a whole."""
        stripped = self._held.lstrip()
        if not stripped or self._whole:
            return True
        if stripped[0] == "{" and not self._called:
            inside = stripped[1:].lstrip()
            self._whole = inside.startswith(_KEYS)
            if self._whole or any(key.startswith(inside) for key in _KEYS):
                return True
        if OPEN.startswith(stripped):
            return True
        if stripped.startswith(OPEN):
            self._held = stripped
        self._beginning = False
        return False


class ForcedCall:
    """The text of an answer that the prompt has begun as a call, up to its arguments."""

    def __init__(self, name: str) -> None:
        """name: the tool that is called."""
        self._name = name
        self._held = ""

    def push(self, text: str) -> list[str | ToolCall]:
        """Nothing: the call is whole when the answer has ended."""
        self._held += text
        return []

    def flush(self) -> list[str | ToolCall]:
        """The call.  Arguments that are no JSON, cut at max_tokens say, are given as they are, as OpenAI does."""
        text = self._held.strip()
        try:
            arguments, _ = json.JSONDecoder(strict=False).raw_decode(text)
        except (ValueError, RecursionError):
            arguments = text.partition(CLOSE)[0].strip()
        return [call] if (call := _call({"name": self._name, "arguments": arguments})) else []


def _calls(text: str) -> tuple[list[ToolCall], bool]:
    """The calls that the text is, one after the other or in a list; none unless all of it is.  And whether the text is
    JSON as far as it goes and ends inside of a string."""
    decoder = json.JSONDecoder(strict=False)  # models break lines inside of strings
    calls: list[ToolCall] = []
    position = 0
    while (position := _SPACE.match(text, position).end()) < len(text):  # type: ignore[union-attr]  # it always matches
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            return [], error.msg.startswith("Unterminated string")
        except (ValueError, RecursionError):
            return [], False
        for item in value if isinstance(value, list) else [value]:
            if (call := _call(item)) is None:
                return [], False
            calls.append(call)
    return calls, False


def _call(value: Any) -> ToolCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(name := value.get("name", value.get("function")), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None or arguments == "":  # clients want an object, as OpenAI's always are
        arguments = {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(_sendable(name), _sendable(text))


def _sendable(text: str) -> str:
    """With U+FFFD for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _joined(found: Collection[str | ToolCall] | Iterator[str | ToolCall]) -> list[str | ToolCall]:
    """With pieces of text that follow each other as one."""
    joined: list[str | ToolCall] = []
    for item in found:
        if joined and isinstance(item, str) and isinstance(last := joined[-1], str):
            joined[-1] = last + item
        else:
            joined.append(item)
    return joined


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of text that are the beginning of the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
