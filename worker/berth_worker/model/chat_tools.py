"""How does a conversation with tools reach a template?  In the form that it expects, or as text if it expects none.

The text is that of SmolLM2, Hermes and Qwen: tools in the system message between <tools> tags, calls as JSON between
<tool_call> tags, results between <tool_response> tags in the user's name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["described", "with_objects"]

Message = Mapping[str, Any]

_DESCRIPTION = """You can call functions to help with the task. These are the functions, as JSON schemas:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object between tags, and with nothing else:
<tool_call>
{{"name": "name of the function", "arguments": {{"name of an argument": "its value"}}}}
</tool_call>"""


def with_objects(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose tool calls have their arguments as objects, as templates want them; OpenAI's have JSON."""
    return [
        {**message, "tool_calls": [_with_object(call) for call in calls]}
        if (calls := message.get("tool_calls"))
        else dict(message)
        for message in messages
    ]


def described(messages: Sequence[Message], tools: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation for a template that knows system, user and assistant, and that content is text."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if calls := message.get("tool_calls"):
            texts = [f"<tool_call>\n{_json(_call(call))}\n</tool_call>" for call in calls]
            content = "\n".join([content, *texts] if content else texts)
        elif role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if plain and role == plain[-1]["role"] == "user" and message["role"] == "tool":
            plain[-1]["content"] += "\n" + content  # results of one turn's calls are one turn
        else:
            plain.append({"role": role, "content": content})
    if tools:
        text = _DESCRIPTION.format(tools="\n".join(map(_json, tools)))
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] += "\n\n" + text
        else:
            plain.insert(0, {"role": "system", "content": text})
    return plain


def _with_object(call: Message) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": _call(call)["arguments"]}}


def _call(call: Message) -> dict[str, Any]:
    """Name and arguments; what is no JSON stays a string, as the model wrote it."""
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    return {"name": function["name"], "arguments": arguments}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
