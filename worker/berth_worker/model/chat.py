"""What prompt does a conversation become?  The model's own template says; sandboxed, because it came with the file.

What clients say must not steer the prompt: where their text spells a control token, a mark is put inside before the
template sees it, so that the tokens of the template's own text, and only those, can be told apart in the result.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.meta

from berth_worker.model.chat_bounds import BoundedEnvironment
from berth_worker.model.chat_tools import described, with_objects

__all__ = ["ChatTemplate", "Shield"]

_REFUSALS = (
    *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError),
    MemoryError,
)
"""What a template can run into."""
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # no text has them (Unicode 16, section 23.7)


class ChatTemplate:
    """A chat template with the helpers that transformers' templates expect: raise_exception, strftime_now, tojson."""

    def __init__(self, source: str | None, *, bos_token: str, eos_token: str) -> None:
        """source: Jinja; compiled at once, so that the first conversation does not wait for it. None: there is none."""
        self._bos, self._eos = bos_token, eos_token
        self._tagged = True
        """Whether calls of tools stand between tags."""
        self._compiled: tuple[Callable[..., str], bool] | None = None
        """And whether it knows tools."""
        self._problem = "this model has no chat template; send a plain prompt instead"
        if source is None:
            return
        try:
            environment = _environment()
            known = jinja2.meta.find_undeclared_variables(environment.parse(source))
            self._compiled = environment.bounded(source), "tools" in known
            self._tagged = "tools" not in known or "<tool_call>" in source
        except _REFUSALS as error:
            self._problem = _refusal(error)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        add_generation_prompt: bool,
    ) -> str:
        """The prompt's text.  messages and tools are in OpenAI's form.  Ends within `chat_bounds`.

        A template that knows nothing of tools gets them described in the system message, and calls and results as
        text; see `chat_tools`.  Raises ValueError if there is no template, or it is broken, or it refuses these
        messages.
        """
        if self._compiled is None:
            raise ValueError(self._problem)
        render, knows_tools = self._compiled
        try:
            return render(
                messages=with_objects(messages) if knows_tools else described(messages, tools),
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except _REFUSALS as error:
            raise ValueError(_refusal(error)) from error

    def call(self, name: str) -> tuple[str, str, str]:
        """What an answer that calls this tool is around the arguments: the tag, if there is one, JSON as far as the
        arguments, and what ends the call."""
        said = json.dumps(name, ensure_ascii=False)
        if self._tagged:
            return "<tool_call>\n", f'{{"name": {said}, "arguments":', "}\n</tool_call>"
        return "", f'{{"name": {said}, "parameters":', "}"


def _refusal(error: Exception) -> str:
    return f"messages: the model's chat template refuses them: {str(error) or type(error).__name__}"


class Shield:
    """Tells the control tokens of a template's text from those that clients spell."""

    def __init__(self, control: Mapping[str, int]) -> None:
        """control: text of each control token to its id."""
        self._ids = {text: i for text, i in control.items() if text}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._anywhere = re.compile(f"(?=(?:{self._pattern}))")

    def mark_for(self, value: object) -> str | None:
        """A character that is in none of the strings in value; None if none of these spells a control token."""
        strings = list(_strings(value))
        if not any(token in text for text in strings for token in self._ids):
            return None
        used = set().union(*strings)
        for mark in _NONCHARACTERS:
            if mark not in used:
                return mark
        raise ValueError("messages: found every one of the noncharacters U+FDD0 to U+FDEF beside a control token")

    def marked(self, value: Any, mark: str) -> Any:
        """value with the mark inside of every control token that its strings spell, keys included."""
        if isinstance(value, str):
            return self._insert(value, mark)
        if isinstance(value, Mapping):
            return {self.marked(key, mark): self.marked(item, mark) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.marked(item, mark) for item in value]
        return value

    def split(self, text: str, mark: str) -> Iterator[str | int]:
        """The rendered text in pieces: plain text, to be encoded as nothing else, and ids of control tokens."""
        for index, piece in enumerate(re.split(f"({self._pattern})(?!{mark})", text)):
            if index % 2:
                yield self._ids[piece]
            elif piece:
                yield piece.replace(mark, "")

    def _insert(self, text: str, mark: str) -> str:
        starts = [match.start() + 1 for match in self._anywhere.finditer(text)]
        return mark.join(text[begin:end] for begin, end in zip([0, *starts], [*starts, len(text)], strict=True))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().astimezone().strftime(layout)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
