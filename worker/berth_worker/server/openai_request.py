"""What does an OpenAI client ask for?  Its JSON, checked field by field, becomes prompts and sampling parameters.

Fields are those of OpenAI's API and, where it has none, of vLLM (top_k, min_p, repetition_penalty, min_tokens,
stop_token_ids, ignore_eos) and ours (session_id).  What would change the answer and is not done here is refused by
name; what would not, such as `user` or `metadata`, is ignored.  `openai_form` reads what the answer has to look like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from berth_worker.engine.params import InvalidRequestError, SamplingParams
from berth_worker.server.openai_fields import Fields, shown
from berth_worker.server.openai_form import Form, read_form

__all__ = ["MAX_CHOICES", "Asked", "Prompt", "parse_body", "read_chat", "read_completion"]

MAX_CHOICES = 16
"""Of one request: prompts times n."""
MAX_ID = 256
COMPLETION_TOKENS = 16
"""max_tokens of /v1/completions where none is given; OpenAI's."""
ROLES = ("system", "developer", "user", "assistant", "tool")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
INTEGERS = ("top_k", "min_tokens")
REFUSED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "guided_grammar": (),
    "guided_whitespace_pattern": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "continue_final_message": (False,),
    "chat_template": (),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
}
"""Fields that would change the answer, and the values beside null that ask for nothing."""

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    model: str | None
    params: SamplingParams
    prompts: tuple[Prompt, ...] = ()
    """Of a completion."""
    messages: tuple[dict[str, Any], ...] = ()
    """Of a chat; content is text."""
    tools: tuple[dict[str, Any], ...] = ()
    """Described in the prompt, whether or not this answer may call them: a turn that may not finds its history."""
    may_call: bool = True
    call: str | None = None
    """The tool that the answer has to call."""
    must_call: bool = False
    """Whether the answer has to call one of the tools."""
    parallel_calls: bool = True
    """Whether one answer may call several tools."""
    form: Form | None = None
    """What the answer has to be."""
    choices: int = 1
    """Answers to each prompt."""
    stream: bool = False
    usage_in_stream: bool = False
    session_id: str = ""
    max_tokens_field: str = "max_tokens"
    """What the client calls it."""
    default_tokens: int | None = None
    """Where the client says nothing of it, and as far as there is room; None: all that there is room for."""

    def params_of(self, choice: int, room: int) -> SamplingParams:
        """Choices of one seed differ, and are the same each time. room: tokens that the prompt leaves."""
        params = self.params
        if params.max_tokens is None and self.default_tokens is not None:
            params = replace(params, max_tokens=max(1, min(self.default_tokens, room)))
        if params.seed is None or not choice:
            return params
        return replace(params, seed=(params.seed + choice) % 2**64)

    def renamed(self, field: str) -> str:
        """The client's name of a field of the engine's."""
        base, bracket, rest = field.partition("[")
        if self.messages:
            chat = {"prompt": "messages", "logprobs": "top_logprobs", "max_tokens": self.max_tokens_field}
            base = chat.get(base, base)
        return base + bracket + rest


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


def read_completion(body: Mapping[str, Any], session: str = "") -> Asked:
    """A body of /v1/completions; session: an id from the headers. Raises InvalidRequestError."""
    fields = Fields(body)
    return _asked(
        fields,
        session,
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
    call, must_call = _choice(fields, tools)
    return _asked(
        fields,
        session,
        logprobs=(top or 0) if fields.boolean("logprobs") else None,
        max_tokens=fields.integer("max_tokens") if max_tokens is None else max_tokens,
        max_tokens_field="max_tokens" if max_tokens is None else "max_completion_tokens",
        messages=_messages(fields),
        tools=tools,
        may_call=fields.get("tool_choice") != "none",
        call=call,
        must_call=must_call,
        parallel_calls=fields.get("parallel_tool_calls") is None or fields.boolean("parallel_tool_calls"),
    )


def _asked(fields: Fields, session: str, *, logprobs: int | None, max_tokens: int | None, **rest: Any) -> Asked:
    for name, harmless in REFUSED.items():
        if (value := fields.get(name)) is not None and value not in harmless:
            fields.refuse(name, "this worker does not support it; leave it out")
    n = fields.integer("n")
    choices = 1 if n is None else n
    asked = max(1, len(rest.get("prompts", ()))) * choices
    if choices < 1 or asked > MAX_CHOICES:
        fields.refuse("n", f"1 to {MAX_CHOICES} answers in all are right")
    if fields.get("best_of") not in (None, choices):
        fields.refuse("best_of", "this worker gives all answers that it makes; the value of n is right")
    stream = fields.boolean("stream")
    usage = False
    if fields.get("stream_options") is not None:
        if not stream:
            fields.refuse("stream_options", "only with stream: true")
        usage = fields.object("stream_options")[0].boolean("include_usage")
    given: dict[str, Any] = {name: value for name in NUMBERS if (value := fields.number(name)) is not None}
    given |= {name: value for name in INTEGERS if (value := fields.integer(name)) is not None}
    if given.get("top_k") == -1:  # off, as vLLM's clients say it
        del given["top_k"]
    seed = fields.integer("seed")
    form = read_form(fields)
    if form is not None and not form.calls and rest.get("must_call"):
        fields.refuse("tool_choice", f"{form.field} says what the answer is; 'auto' or 'none' is right with it")
    asked_for = Asked(fields.text("model"), SamplingParams(), choices=choices, stream=stream, form=form, **rest)
    try:
        params = SamplingParams(
            **given,
            max_tokens=max_tokens,
            logprobs=logprobs,
            seed=None if seed is None else seed % 2**64,  # OpenAI's are signed
            stop=_stop(fields),
            stop_token_ids=tuple(_integers("stop_token_ids", fields.items("stop_token_ids"))),
            logit_bias=_logit_bias(fields),
            ignore_eos=fields.boolean("ignore_eos"),
        )
    except InvalidRequestError as error:
        raise InvalidRequestError(asked_for.renamed(error.field), error.problem) from error
    name, session = _session(fields, session)
    if len(session) > MAX_ID:
        raise InvalidRequestError(name, f"{len(session)} characters; at most {MAX_ID}")
    return replace(asked_for, params=params, usage_in_stream=usage, session_id=session)


def _session(fields: Fields, header: str) -> tuple[str, str]:
    """Which field names the turn's agent session, and the session: ours, the header, or OpenAI's hint for caches."""
    if own := fields.text("session_id"):
        return "session_id", own
    if header:
        return "x-session-id", header
    return "prompt_cache_key", fields.text("prompt_cache_key") or ""


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
        prompts.append(item if isinstance(item, str) else _integers(f"prompt[{index}]", item))
    return tuple(prompts)


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    if not fields.items("messages"):
        fields.refuse("messages", "at least one message is right")
    return tuple(_message(message) for message, _ in fields.objects("messages"))


def _message(message: Fields) -> dict[str, Any]:
    role = message.text("role")
    if role not in ROLES:
        message.refuse("role", f"one of {', '.join(ROLES)} is right")
    found: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": _content(message)}
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


def _content(message: Fields) -> str | None:
    """Text, or that of parts; None if there is none."""
    if not isinstance(message.get("content"), list):
        return message.text("content")
    texts = []
    for part, _ in message.objects("content"):
        kind = part.get("type")
        if kind != "text" and not (kind == "refusal" and message.get("role") == "assistant"):
            part.refuse("type", "'text' is right: this model reads text alone")
        if (text := part.text(kind)) is None:
            part.refuse(kind, "text is right")
        texts.append(text)
    return "\n".join(texts)


def _tools(fields: Fields) -> tuple[dict[str, Any], ...]:
    tools = []
    for tool, value in fields.objects("tools"):
        if tool.get("type") != "function":
            tool.refuse("type", "'function' is right")
        function, _ = tool.object("function")
        if not function.text("name"):
            function.refuse("name", "text that is not empty is right")
        function.boolean("strict")
        if function.get("parameters") is not None:
            function.object("parameters")
        tools.append(value)
    return tuple(tools)


def _choice(fields: Fields, tools: Sequence[dict[str, Any]]) -> tuple[str | None, bool]:
    """The one tool that the answer has to call, None if the model decides which; and whether it has to call any."""
    choice, names = fields.get("tool_choice"), {tool["function"]["name"] for tool in tools}
    if choice in (None, "auto", "none"):
        return None, False
    name = None
    if choice == "required" and names:
        return (names.pop() if len(names) == 1 else None), True
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = fields.object("tool_choice")[0].object("function")[0].text("name")
    if name not in names:
        fields.refuse("tool_choice", "'auto', 'none', 'required' and one of the tools are supported")
    return name, True


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    for index, item in enumerate(fields.items("stop")):
        if not isinstance(item, str):
            raise InvalidRequestError(f"stop[{index}]", f"found {shown(item)}; text is right")
    return tuple(value)


def _logit_bias(fields: Fields) -> dict[int, float]:
    if fields.get("logit_bias") is None:
        return {}
    biases = {}
    for token, bias in fields.object("logit_bias")[1].items():
        if not token.isascii() or not token.isdecimal() or len(token) > 9:
            raise InvalidRequestError("logit_bias", f"found the key {shown(token)}; a token's number is right")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise InvalidRequestError(f"logit_bias[{token}]", f"found {shown(bias)}; a number is right")
        biases[int(token)] = float(max(-1e9, min(1e9, bias)))  # what is out of range is said where ranges are known
    return biases


def _integers(name: str, values: list[Any]) -> list[int]:
    for index, value in enumerate(values):
        if type(value) is not int:
            raise InvalidRequestError(f"{name}[{index}]", f"found {shown(value)}; a token's number is right")
    return values


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
