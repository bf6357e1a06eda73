"""How does an answer look to an OpenAI client?  Chunks of the engine become pieces, whole answers, usage and errors.

Here for /v1/completions and /v1/chat/completions; `responses_reply` for the Responses API.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from berth_worker.engine.request import FinishReason
from berth_worker.server.answer_items import AnswerItems
from berth_worker.server.events import sent_event
from berth_worker.server.tool_calls import Arguments, Item

if TYPE_CHECKING:
    from berth_worker.engine.sampling import TokenLogprobs
    from berth_worker.engine.stream import Chunk, Finish
    from berth_worker.model.interface import Tokenizer
    from berth_worker.server.openai_asked import Asked

__all__ = [
    "ChatChoice",
    "Choice",
    "ChoicesReply",
    "Reply",
    "TextChoice",
    "call_id",
    "error_body",
    "token_logprobs",
    "usage",
]

REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(finishes: Sequence[tuple[int, Finish]]) -> dict[str, Any]:
    """Of (prompt, how a choice of it ended): prompts count once, however many choices they have."""
    prompts = {prompt: finish.prompt_tokens for prompt, finish in finishes}
    cached = {prompt: finish.cached_prompt_tokens for prompt, finish in reversed(finishes)}
    read, generated = sum(prompts.values()), sum(finish.completion_tokens for _, finish in finishes)
    return {
        "prompt_tokens": read,
        "completion_tokens": generated,
        "total_tokens": read + generated,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
    }


class Choice:
    """One answer as it comes. Pieces, one after the other, say what `whole` says."""

    def __init__(self, index: int, tokenizer: Tokenizer) -> None:
        self.index = index
        self.finish: Finish | None = None
        self._tokenizer = tokenizer
        self._text: list[str] = []
        self._places: list[TokenLogprobs] = []

    def pieces(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The entries of `choices` that say what a chunk says."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        """The entry of `choices` that says all of it."""
        raise NotImplementedError

    def _reason(self) -> str | None:
        return None if self.finish is None else REASONS[self.finish.reason]


class TextChoice(Choice):
    """Of /v1/completions."""

    def __init__(self, index: int, tokenizer: Tokenizer) -> None:
        super().__init__(index, tokenizer)
        self._begin()

    def pieces(self, chunk: Chunk) -> list[dict[str, Any]]:
        self.finish = chunk.finish
        self._text.append(chunk.text)
        self._places += chunk.logprobs
        if not (chunk.text or chunk.logprobs or chunk.finish):
            return []
        return [self._entry(chunk.text, chunk.logprobs)]

    def whole(self) -> dict[str, Any]:
        self._begin()
        return self._entry("".join(self._text), self._places)

    def _begin(self) -> None:
        self._offset, self._decoder = 0, self._tokenizer.stream()

    def _entry(self, text: str, places: Sequence[TokenLogprobs]) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": text,
            "logprobs": self._logprobs(places) if places else None,
            "finish_reason": self._reason(),
        }

    def _logprobs(self, places: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The likeliest tokens and the one that came, as OpenAI's; offsets are into the text."""
        offsets = []
        for place in places:
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(place.token))
        pairs = [(*place.top, (place.token, place.logprob)) for place in places]
        return {
            "tokens": [self._spelled(place.token) for place in places],
            "token_logprobs": [place.logprob for place in places],
            "top_logprobs": [{self._spelled(token): value for token, value in found} for found in pairs],
            "text_offset": offsets,
        }

    def _spelled(self, token: int) -> str:
        """As text; a part of a character as OpenAI spells it, `bytes:\\xf0\\x9f`, so that no two are the same."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChatChoice(Choice):
    """Of /v1/chat/completions."""

    def __init__(self, index: int, tokenizer: Tokenizer, items: AnswerItems) -> None:
        super().__init__(index, tokenizer)
        self._items = items
        self._calls: list[dict[str, Any]] = []
        self._begun = False

    def pieces(self, chunk: Chunk) -> list[dict[str, Any]]:
        self.finish = chunk.finish
        self._places += chunk.logprobs
        deltas = [self._delta(item) for item in self._items.push(chunk)]
        if not deltas and chunk.logprobs:
            deltas = [{"content": ""}]  # what they are of comes later
        if not self._begun and (deltas or chunk.finish):
            self._begun = True
            deltas = [{"role": "assistant", "content": ""} | (deltas[0] if deltas else {}), *deltas[1:]]
        entries = [self._entry(delta) for delta in deltas]
        if chunk.logprobs:
            entries[0]["logprobs"] = self._logprobs(chunk.logprobs)
        if chunk.finish:
            entries.append(self._entry({}) | {"finish_reason": self._reason()})
        return entries

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        if self._calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in self._calls]
        return {
            "index": self.index,
            "message": message,
            "logprobs": self._logprobs(self._places) if self._places else None,
            "finish_reason": self._reason(),
        }

    def _reason(self) -> str | None:
        reason = super()._reason()
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _entry(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _delta(self, item: Item) -> dict[str, Any]:
        if isinstance(item, str):
            self._text.append(item)
            return {"content": item}
        if isinstance(item, Arguments):
            call = self._calls[-1]
            call["function"]["arguments"] += item.text
            return {"tool_calls": [{"index": call["index"], "function": {"arguments": item.text}}]}
        call = {"index": len(self._calls), "id": call_id(), "type": "function"}
        function = {"name": item.name, "arguments": item.arguments}
        self._calls.append(call | {"function": function.copy()})
        return {"tool_calls": [call | {"function": function}]}

    def _logprobs(self, places: Sequence[TokenLogprobs]) -> dict[str, Any]:
        return {"content": token_logprobs(places, self._tokenizer), "refusal": None}


def token_logprobs(places: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """As a chat's, and the Responses API's."""

    def entry(token: int, value: float) -> dict[str, Any]:
        text = tokenizer.decode([token], skip_special_tokens=False)
        return {"token": text, "logprob": value, "bytes": list(tokenizer.token_bytes(token))}

    return [
        entry(place.token, place.logprob) | {"top_logprobs": [entry(*pair) for pair in place.top]} for place in places
    ]


def call_id() -> str:
    """A new name of a call, by which its result comes back."""
    return f"call_{uuid.uuid4().hex[:24]}"


class Reply(Protocol):
    """All of what one request is answered: events of a stream, which say what `whole` says."""

    def begun(self) -> list[dict[str, Any]]:
        """Events before all others."""

    def take(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """Events that say what a chunk says of one of the answers."""

    def ended(self) -> list[dict[str, Any]]:
        """Events that come when all answers have ended."""

    def failed(self, error: dict[str, Any]) -> list[dict[str, Any]]:
        """Events that end the stream instead; error: as error_body."""

    def whole(self) -> dict[str, Any]:
        """The answer in one, once all answers have ended."""

    def encoded(self, events: Sequence[dict[str, Any]]) -> bytes:
        """As server-sent events."""

    last: bytes
    """What ends a stream that did not fail."""


class ChoicesReply:
    """Of /v1/completions and /v1/chat/completions."""

    last = b"data: [DONE]\n\n"

    def __init__(
        self,
        asked: Asked,
        choices: Sequence[Choice],
        request_id: str,
        model: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._asked, self._choices = asked, choices
        self._kind, prefix = ("chat.completion", "chatcmpl") if asked.messages else ("text_completion", "cmpl")
        self._common = {"id": f"{prefix}-{request_id}", "created": int(clock()), "model": model}

    def begun(self) -> list[dict[str, Any]]:
        return []

    def take(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        return [self._piece([piece]) for piece in self._choices[index].pieces(chunk)]

    def ended(self) -> list[dict[str, Any]]:
        return [self._piece([]) | {"usage": self._used()}] if self._asked.usage_in_stream else []

    def failed(self, error: dict[str, Any]) -> list[dict[str, Any]]:
        return [error]

    def whole(self) -> dict[str, Any]:
        entries = [choice.whole() for choice in self._choices]
        return self._common | {"object": self._kind, "choices": entries, "usage": self._used()}

    def encoded(self, events: Sequence[dict[str, Any]]) -> bytes:
        return b"".join(sent_event(event) for event in events)

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._asked.messages else self._kind
        return self._common | {"object": kind, "choices": choices}

    def _used(self) -> dict[str, Any]:
        each = self._asked.choices
        return usage([(i // each, choice.finish) for i, choice in enumerate(self._choices) if choice.finish])
