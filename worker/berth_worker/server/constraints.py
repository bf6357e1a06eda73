"""What may an answer be?  What the client asks for becomes a grammar, read outside of the event loop.

A thread reads them one after the other, so that many at once do not take the model's cores; the first one waits for the
tokens' bytes.  llguidance and the rest are imported then: a worker whose clients ask for nothing pays nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from berth_worker.engine.params import InvalidRequestError
from berth_worker.grammar import text as grammar
from berth_worker.grammar.text import Call, GrammarError
from berth_worker.server.tool_calls import OPEN

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine
    from berth_worker.grammar.guidance import Grammar, Guidance
    from berth_worker.model.interface import Tokenizer
    from berth_worker.server.openai_asked import Asked
    from berth_worker.server.openai_form import Form

__all__ = ["Constraints"]

log = logging.getLogger(__name__)

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


class Constraints:
    """Reads what the clients of one engine ask for."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "berth-grammars")
        self._guidance: Guidance | None = None
        self._told = False

    async def grammar(self, asked: Asked, engine: Engine) -> Grammar | None:
        """Of the answer; None: any text.  Raises InvalidRequestError, naming the field."""
        if not _constrained(asked):
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, asked, engine)

    def _read(self, asked: Asked, engine: Engine) -> Grammar:
        from berth_worker.grammar.guidance import Guidance  # noqa: PLC0415 - see above

        if self._guidance is None:
            self._guidance = Guidance(engine.tokenizer, engine.vocab_size)
        tools = _calls(asked, engine.tokenizer) if asked.may_call else []
        parts = _parts(asked, tools)
        for field, schema, _ in parts:
            _named(field, grammar.check_schema, schema)
        try:
            read = self._guidance.read(_text(asked, [call for _, call in tools]))
        except GrammarError as error:
            for field, _, alone in parts:
                _named(field, self._guidance.read, alone())
            raise InvalidRequestError(parts[0][0], f"cannot be kept to together with the others: {error}") from error
        if read.ignored:
            for field, _, alone in parts:  # what is left out must be of tools that are not strict
                _named(field, self._guidance.read, alone())
            if not self._told:
                self._told = True
                log.warning("tools: not enforced, for they are not strict: %s (said once)", "; ".join(read.ignored))
        return read


def _constrained(asked: Asked) -> bool:
    if asked.tools and not asked.may_call:
        return True
    return bool(asked.form or asked.must_call or any(tool["function"].get("strict") for tool in asked.tools))


def _text(asked: Asked, calls: list[Call]) -> str:
    if asked.call is not None:
        return grammar.arguments(calls[0])
    if asked.must_call:
        return grammar.calls(calls, several=asked.parallel_calls)
    if asked.form is None:
        return grammar.text_with_calls(calls) if asked.may_call else grammar.text_without(OPEN)
    if asked.form.calls and calls:
        return grammar.json_value_or_calls(asked.form.value, calls, several=asked.parallel_calls)
    return _form(asked.form)


def _form(form: Form) -> str:
    from berth_worker.grammar.guidance import regex  # noqa: PLC0415 - see above

    if form.kind == "regex":
        return regex(form.value)
    return grammar.choice(form.value) if form.kind == "choice" else grammar.json_value(form.value)


def _parts(asked: Asked, tools: list[tuple[str, Call]]) -> list[tuple[str, Any, Callable[[], str]]]:
    """What an answer's grammar is made of: the field, its schema and its grammar alone."""
    parts: list[tuple[str, Any, Callable[[], str]]] = []
    if (form := asked.form) is not None:
        parts.append((form.field, form.value if form.kind == "json" else None, partial(_form, form)))
    for field, call in tools:
        parts.append((field, call.schema, partial(grammar.json_value, call.schema, strict=call.strict)))
    return parts


def _calls(asked: Asked, tokenizer: Tokenizer) -> list[tuple[str, Call]]:
    """The tools that the answer may call, and by which field what their arguments are."""
    found = []
    for index, tool in enumerate(asked.tools):
        function = tool["function"]
        name, strict = function["name"], bool(function.get("strict"))
        if asked.call not in (None, name):
            continue
        before, after = tokenizer.call_text(name)
        schema = _arguments(function.get("parameters")) if strict or asked.must_call else {"type": "object"}
        tag = OPEN if before.startswith(OPEN) else ""
        found.append((asked.schemas.format(index), Call(name, before, after, schema, strict, tag)))
    return found


def _arguments(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The schema of a tool's arguments: always an object, as OpenAI's."""
    return _NOTHING if schema is None else {"type": "object"} | dict(schema)


def _named(field: str, check: Callable[[Any], object], value: Any) -> None:
    try:
        check(value)
    except GrammarError as error:
        raise InvalidRequestError(field, f"this worker cannot keep an answer to it: {error}") from error
