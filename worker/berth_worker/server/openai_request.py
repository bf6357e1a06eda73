"""What do clients of /v1/completions and /v1/chat/completions ask for?  Their JSON, checked field by field.

`openai_asked` reads what is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from berth_worker.engine.params import InvalidRequestError
from berth_worker.server.openai_asked import Asked, Prompt, integers, read_asked
from berth_worker.server.openai_fields import Fields, shown
from berth_worker.server.openai_form import read_form

__all__ = ["calls_of", "function", "read_chat", "read_completion", "text_of"]

COMPLETION_TOKENS = 16
"""max_tokens of /v1/completions where none is given; OpenAI's."""
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_completion(body: Mapping[str, Any], session: str = "") -> Asked:
    """A body of /v1/completions; session: an id from the headers. Raises InvalidRequestError."""
    fields = Fields(body)
    return read_asked(
        fields,
        session,
        form=read_form(fields),
        logprobs=fields.integer("logprobs"),
        max_tokens=fields.integer("max_tokens"),
        default_tokens=COMPLETION_TOKENS,
        prompts=_prompts(fields),
    )


def read_chat(body: Mapping[str, Any], session: str = "") -> Asked:
    """A body of /v1/chat/completions; session: an id from the headers. Raises InvalidRequestError."""
    fields = Fields(body)
    top = fields.integer("top_logprobs")
    if top is not None and not fields.boolean("logprobs"):
        fields.refuse("top_logprobs", "logprobs must be true with it")
    max_tokens = fields.integer("max_completion_tokens")
    tools = _tools(fields)
    calling = calls_of(fields, tools, lambda choice: choice.object("function")[0])
    return read_asked(
        fields,
        session,
        form=read_form(fields),
        logprobs=(top or 0) if fields.boolean("logprobs") else None,
        max_tokens=fields.integer("max_tokens") if max_tokens is None else max_tokens,
        names={
            "prompt": "messages",
            "logprobs": "top_logprobs",
            "max_tokens": "max_tokens" if max_tokens is None else "max_completion_tokens",
        },
        messages=_messages(fields),
        **calling,
    )


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    """A text, several, a list of tokens, or several such lists."""
    value = fields.get("prompt")
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        fields.refuse("prompt", "a text, a list of texts, or tokens are right")
    if all(type(item) is int for item in value):
        return (value,)
    prompts: list[Prompt] = []
    for index, item in enumerate(value):
        if not item or not isinstance(item, str | list):
            raise InvalidRequestError(f"prompt[{index}]", f"found {shown(item)}; a text or a list of tokens is right")
        prompts.append(item if isinstance(item, str) else integers(f"prompt[{index}]", item))
    return tuple(prompts)


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    if not fields.items("messages"):
        fields.refuse("messages", "at least one message is right")
    return tuple(_message(message) for message, _ in fields.objects("messages"))


def _message(message: Fields) -> dict[str, Any]:
    role = message.text("role")
    if role not in ROLES:
        message.refuse("role", f"one of {', '.join(ROLES)} is right")
    found: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": text_of(message, "content", ("text", "refusal") if role == "assistant" else ("text",)),
    }
    calls = []
    for call, _ in message.objects("tool_calls"):
        function, _ = call.object("function")
        for name in ("name", "arguments"):
            if function.text(name) is None:
                function.refuse(name, "text is right")
        calls.append(
            {
                "id": call.text("id") or "",
                "type": "function",
                "function": {"name": function.get("name"), "arguments": function.get("arguments")},
            }
        )
    if calls:
        if role != "assistant":
            message.refuse("tool_calls", "only the assistant calls tools")
        found["tool_calls"] = calls
    elif found["content"] is None:
        if role != "assistant":
            message.refuse("content", "text is right")
        found["content"] = message.text("refusal") or ""  # an empty turn, as some clients send it back
    for name in ("name", "tool_call_id"):
        if (value := message.text(name)) is not None:
            found[name] = value
    return found


def text_of(fields: Fields, name: str, kinds: Collection[str]) -> str | None:
    """Text, or that of parts of these kinds; None if there is none. Raises InvalidRequestError."""
    if not isinstance(fields.get(name), list):
        return fields.text(name)
    texts = []
    for part, _ in fields.objects(name):
        if (kind := part.get("type")) not in kinds:
            part.refuse("type", f"{_or(kinds)} is right: this model reads text alone")
        key = "refusal" if kind == "refusal" else "text"
        if (text := part.text(key)) is None:
            part.refuse(key, "text is right")
        texts.append(text)
    return "\n".join(texts)


def _or(kinds: Collection[str]) -> str:
    return " or ".join(f"'{kind}'" for kind in kinds)


def _tools(fields: Fields) -> tuple[dict[str, Any], ...]:
    tools = []
    for tool, value in fields.objects("tools"):
        if tool.get("type") != "function":
            tool.refuse("type", "'function' is right")
        function(tool.object("function")[0])
        tools.append(value)
    return tuple(tools)


def function(fields: Fields) -> None:
    """Raises InvalidRequestError unless it is a function's name, schema and strictness."""
    if not fields.text("name"):
        fields.refuse("name", "text that is not empty is right")
    fields.boolean("strict")
    if fields.get("parameters") is not None:
        fields.object("parameters")


def calls_of(
    fields: Fields, tools: tuple[dict[str, Any], ...], function_of: Callable[[Fields], Fields]
) -> dict[str, Any]:
    """What Asked says of calls, by its fields' names; see _choice. Raises InvalidRequestError."""
    call, must_call = _choice(fields, tools, function_of)
    return {
        "tools": tools,
        "may_call": fields.get("tool_choice") != "none",
        "call": call,
        "must_call": must_call,
        "parallel_calls": fields.get("parallel_tool_calls") is None or fields.boolean("parallel_tool_calls"),
    }


def _choice(
    fields: Fields, tools: Sequence[dict[str, Any]], function_of: Callable[[Fields], Fields]
) -> tuple[str | None, bool]:
    """The one tool that the answer has to call, None if the model decides which; and whether it has to call any.

    function_of: where tool_choice has the function's name. Raises InvalidRequestError.
    """
    choice, names = fields.get("tool_choice"), {tool["function"]["name"] for tool in tools}
    if choice in (None, "auto", "none"):
        return None, False
    name = None
    if choice == "required" and names:
        return (names.pop() if len(names) == 1 else None), True
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = function_of(fields.object("tool_choice")[0]).text("name")
    if name not in names:
        fields.refuse("tool_choice", "'auto', 'none', 'required' and one of the tools are supported")
    return name, True
