"""What does a client of /v1/responses ask for?  Its items become the messages of a chat.

Nothing is stored: what a client would refer to by an id is refused by name, and `store` changes nothing.  Reasoning of
other models is left out.  `truncation: auto` allows to forget what does not fit, which is not done: it is refused then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berth_worker.server.openai_asked import Asked, read_asked
from berth_worker.server.openai_fields import Fields
from berth_worker.server.openai_form import read_form
from berth_worker.server.openai_request import calls_of, function, text_of

__all__ = ["read_response"]

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "n": (1,),
    "messages": (),
    "response_format": (),
    "max_tokens": (),
    "max_completion_tokens": (),
}
"""Fields that would change the answer, and the values beside null that ask for nothing; chat's names for others too."""
ROLES = ("system", "developer", "user", "assistant")
LOGPROBS = "message.output_text.logprobs"
PLAIN = ("input_text", "output_text", "text")


def read_response(body: Mapping[str, Any], session: str = "") -> Asked:
    """A body of /v1/responses; session: an id from the headers. Raises InvalidRequestError."""
    fields = Fields(body)
    top, most = fields.integer("top_logprobs"), fields.integer("max_output_tokens")
    if fields.get("truncation") not in (None, "auto", "disabled"):
        fields.refuse("truncation", "'auto' or 'disabled' is right")
    tools = tuple(_tool(tool) for tool, _ in fields.objects("tools"))
    calling = calls_of(fields, tools, lambda choice: choice)
    return read_asked(
        fields,
        session,
        refused=REFUSED,
        form=read_form(fields, text=True),
        logprobs=top or 0 if top is not None or LOGPROBS in fields.items("include") else None,
        max_tokens=most,
        names={"prompt": "input", "logprobs": "top_logprobs", "max_tokens": "max_output_tokens"},
        schemas="tools[{}].parameters",
        repeated={
            **{name: fields.get(name) for name in ("instructions", "user", "prompt_cache_key")},
            "metadata": fields.object("metadata")[1] if fields.get("metadata") is not None else {},
            "max_output_tokens": most,
            "text": {"format": {"type": "text"}} | (fields.get("text") or {}),
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": [{"type": "function", **tool["function"]} for tool in tools],
            "top_logprobs": top or 0,
        },
        messages=_messages(fields),
        **calling,
    )


def _tool(tool: Fields) -> dict[str, Any]:
    """As chat describes it."""
    if tool.get("type") != "function":
        tool.refuse("type", "'function' is right: this worker runs no tools itself")
    function(tool)
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool.get(name) for name in names if tool.get(name) is not None}}


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    instructions = fields.text("instructions")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(text := fields.get("input"), str):
        return (*messages, {"role": "user", "content": text})
    if not fields.items("input"):
        fields.refuse("input", "text, or at least one item, is right")
    for item, _ in fields.objects("input"):
        _add(messages, item)
    if not messages:
        fields.refuse("input", "at least one message is right")
    return tuple(messages)


def _add(messages: list[dict[str, Any]], item: Fields) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append(_message(item))
    elif kind == "function_call":
        call: dict[str, Any] = {"id": _needed(item, "call_id"), "type": "function"}
        call |= {"function": {"name": _needed(item, "name"), "arguments": _needed(item, "arguments")}}
        if not messages or messages[-1]["role"] != "assistant":  # else what it said before, or called besides
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        if (text := text_of(item, "output", PLAIN)) is None:
            item.refuse("output", "text is right")
        messages.append({"role": "tool", "tool_call_id": _needed(item, "call_id"), "content": text})
    elif kind != "reasoning":
        item.refuse("type", "'message', 'function_call', 'function_call_output' and 'reasoning' are supported")


def _message(item: Fields) -> dict[str, Any]:
    role = item.get("role")
    if role not in ROLES:
        item.refuse("role", f"one of {', '.join(ROLES)} is right")
    content = text_of(item, "content", (*PLAIN, "refusal") if role == "assistant" else PLAIN)
    if content is None:
        item.refuse("content", "text is right")
    return {"role": "system" if role == "developer" else role, "content": content}


def _needed(item: Fields, name: str) -> str:
    if (text := item.text(name)) is None:
        item.refuse(name, "text is right")
    return text
