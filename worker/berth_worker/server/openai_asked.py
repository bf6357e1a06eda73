"""What do all of OpenAI's endpoints ask of a model alike?  One kind of request, and the fields that sampling has.

Fields are those of OpenAI's API and, where it has none, of vLLM (top_k, min_p, repetition_penalty, min_tokens,
stop_token_ids, ignore_eos) and ours (session_id).  What would change the answer and is not done here is refused by
name; what would not, such as `user` or `metadata`, is ignored.  `openai_form` reads what the answer has to look like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from berth_worker.engine.params import InvalidRequestError, SamplingParams
from berth_worker.server.openai_fields import Fields, shown
from berth_worker.server.openai_form import Form

__all__ = ["MAX_CHOICES", "Asked", "Prompt", "integers", "read_asked"]

MAX_CHOICES = 16
"""Of one request: prompts times n."""
MAX_ID = 256
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
INTEGERS = ("top_k", "min_tokens")
REFUSED: Mapping[str, tuple[Any, ...]] = {
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
    names: Mapping[str, str] = field(default_factory=dict)
    """What the client calls the engine's fields, where it is something else."""
    schemas: str = "tools[{}].function.parameters"
    """Where a tool's schema stands in the client's request."""
    repeated: Mapping[str, Any] | None = None
    """What the answer repeats of the request, as the Responses API's does; None: another API's answer is wanted."""
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

    def renamed(self, name: str) -> str:
        """The client's name of a field of the engine's."""
        base, bracket, rest = name.partition("[")
        return self.names.get(base, base) + bracket + rest


def read_asked(
    fields: Fields,
    session: str,
    *,
    form: Form | None,
    logprobs: int | None,
    max_tokens: int | None,
    refused: Mapping[str, tuple[Any, ...]] | None = None,
    **rest: Any,
) -> Asked:
    """What is the same for all endpoints, and the rest, fields of Asked, as its own reader has found it.

    session: an id from the headers; refused: as REFUSED, of this endpoint alone. Raises InvalidRequestError.
    """
    for name, harmless in {**REFUSED, **(refused or {})}.items():
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
            stop_token_ids=tuple(integers("stop_token_ids", fields.items("stop_token_ids"))),
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


def integers(name: str, values: list[Any]) -> list[int]:
    """The values, if all are tokens' numbers. Raises InvalidRequestError."""
    for index, value in enumerate(values):
        if type(value) is not int:
            raise InvalidRequestError(f"{name}[{index}]", f"found {shown(value)}; a token's number is right")
    return values
