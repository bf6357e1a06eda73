"""Where in a model's text does it call a tool?  In the forms of the model families that we serve.

- `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, an object or a list of them: SmolLM2, Hermes, Qwen, and
  what we ask of models whose template knows no tools;
- `{"name": ..., "parameters": {...}}` as the whole answer, several one after the other or with `;` between: Llama 3.1,
  3.2 and 3.3.

Text is read as it comes: what cannot be a call is given out at once, and what does not become one is text after all.
Once a call has a name and its arguments have begun, it is a call, and the arguments are given out as they come: a file
that an agent writes takes minutes, for which no proxy waits in silence. A call without tags is known for one only where
a grammar says that nothing else can begin so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from berth_worker.server.call_arguments import ArgumentsText, sendable

__all__ = ["OPEN", "Arguments", "ForcedCall", "Item", "ToolCall", "ToolText"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_KEYS = ('"name"', '"type"', '"function"')
"""What stands first in an answer that is a call as a whole."""
_TAG = re.compile(f"{OPEN}|{CLOSE}")
_SPACE = re.compile(r"[\s;]*")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""A call up to its arguments."""
_AFTER = re.compile(r"[\s;}]*")
"""What ends a call behind its arguments, and what stands between calls."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, with its arguments as far as they have come."""

    name: str
    arguments: str
    """JSON, as the model gave it."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """How the last call's arguments go on."""

    text: str


Item = str | ToolCall | Arguments


class ToolText:
    """One answer's text as it comes."""

    def __init__(self, names: Collection[str], *, sure: bool = False) -> None:
        """names: the tools that there are; an answer that is JSON is a call only if it names one.
        sure: what begins as a call of one of them is one."""
        self._names, self._sure = frozenset(names), sure
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
        self._arguments: ArgumentsText | None = None
        """Of the call that goes on."""
        self._after = False
        """Its arguments have ended, and it has not."""

    def push(self, text: str) -> list[Item]:
        """What is certain once this text is in, in order."""
        self._held += text
        return _joined(self._certain())

    def flush(self) -> list[Item]:
        """What is left when the answer has ended."""
        found = list(self._certain(ended=True))
        if self._arguments is not None or self._after:
            return _joined([*found, Arguments(self._arguments.flush() if self._arguments else "")])
        held, self._held = self._held, ""
        calls = _calls(held)[0] if self._inside or self._whole else []
        if self._inside:
            held = "" if self._sure else OPEN + held  # cut before its arguments: no text that anybody wants
        elif not all(call.name in self._names for call in calls):
            calls = []
        if calls:
            found += calls
        elif held.strip() or (held and not self._called):
            found.append(held)
        return _joined(found)

    def _certain(self, *, ended: bool = False) -> Iterator[Item]:
        while True:
            yield from self._goes_on()
            if self._arguments is not None or self._after:
                return
            if (name := self._begins()) is not None:
                yield ToolCall(name, "")
                continue
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

    def _begins(self) -> str | None:
        """The name of the call whose arguments come next in what is held."""
        if not (self._inside or (self._whole and self._sure)) or not (match := _HEAD.match(self._held)):
            return None
        try:
            name = sendable(json.loads(match[1], strict=False))
        except ValueError:
            return None
        if not self._inside and name not in self._names:
            return None
        self._held = self._held[match.end() :]
        self._arguments, self._called = ArgumentsText(CLOSE), True
        return name

    def _goes_on(self) -> Iterator[Item]:
        """The rest of the call whose arguments have begun, as far as it has come."""
        if self._arguments is not None:
            given, self._held = self._arguments.push(self._held)
            yield Arguments(given)
            if self._arguments.ended:
                self._arguments, self._after = None, True
        if not self._after:
            return
        self._held = self._held[_AFTER.match(self._held).end() :]  # type: ignore[union-attr]  # it always matches
        if not self._inside or self._held[:1] == "{":
            self._after = not self._held
            return
        if not (tag := _TAG.search(self._held)):
            keep = max(_overlap(self._held, OPEN), _overlap(self._held, CLOSE))
            self._held = self._held[len(self._held) - keep :]
            return
        self._held = self._held[tag.end() :]
        self._inside, self._after, self._looked, self._beginning = tag[0] == OPEN, False, 0, True

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
        self._arguments: ArgumentsText | None = None

    def push(self, text: str) -> list[Item]:
        """The call, once its arguments have begun as an object, and how they go on."""
        if self._arguments is not None:
            return [] if self._arguments.ended else _joined([Arguments(self._arguments.push(text)[0])])
        self._held += text
        if not self._held.lstrip().startswith("{"):
            return []
        self._arguments = ArgumentsText(CLOSE)
        return [ToolCall(self._name, self._arguments.push(self._held.lstrip())[0])]

    def flush(self) -> list[Item]:
        """What is left.  Arguments that are no JSON, cut at max_tokens say, are given as they are, as OpenAI does."""
        if self._arguments is not None:
            return _joined([Arguments(self._arguments.flush())])
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
    return ToolCall(sendable(name), sendable(text))


def _joined(found: Iterable[Item]) -> list[Item]:
    """With pieces of text, or of arguments, that follow each other as one, and without empty ones."""
    joined: list[Item] = []
    for item in found:
        last = joined[-1] if joined else None
        if item in ("", Arguments("")):
            continue
        if isinstance(item, str) and isinstance(last, str):
            joined[-1] = last + item
        elif isinstance(item, Arguments) and isinstance(last, Arguments):
            joined[-1] = Arguments(last.text + item.text)
        elif isinstance(item, Arguments) and isinstance(last, ToolCall):
            joined[-1] = ToolCall(last.name, last.arguments + item.text)
        else:
            joined.append(item)
    return joined


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of text that are the beginning of the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
