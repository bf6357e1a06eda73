"""How does an answer look to an OpenAI client?  Chunks of the engine become pieces, whole answers, usage and errors."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from berth_worker.engine.request import FinishReason
from berth_worker.server.tool_calls import Arguments, ForcedCall, Item, ToolCall, ToolText

if TYPE_CHECKING:
    from berth_worker.engine.sampling import TokenLogprobs
    from berth_worker.engine.stream import Chunk, Finish
    from berth_worker.model.interface import Tokenizer

__all__ = ["ChatChoice", "Choice", "Reply", "TextChoice", "error_body", "usage"]

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

    def _token(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)


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

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        tools: Sequence[str],
        *,
        parallel: bool = True,
        call: str | None = None,
        sure: bool = False,
    ) -> None:
        """tools: names of the tools that the answer may call; parallel: whether several, else the first counts;
        call: the tool that the prompt lets it call; sure: whether a grammar has what begins as a call be one."""
        super().__init__(index, tokenizer)
        self._tools = ForcedCall(call) if call is not None else ToolText(tools, sure=sure) if tools else None
        self._most_calls = math.inf if parallel else 1
        self._calls: list[dict[str, Any]] = []
        self._too_many = False
        """The call that goes on is beyond those."""
        self._begun = False

    def pieces(self, chunk: Chunk) -> list[dict[str, Any]]:
        self.finish = chunk.finish
        self._places += chunk.logprobs
        found: list[Item] = [chunk.text] if chunk.text else []
        if self._tools is not None:
            found = self._tools.push(chunk.text) + (self._tools.flush() if chunk.finish else [])
        deltas = [delta for item in found if (delta := self._delta(item))]
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

    def _delta(self, item: Item) -> dict[str, Any] | None:
        if isinstance(item, str):
            self._text.append(item)
            return {"content": item}
        if isinstance(item, ToolCall):
            self._too_many = len(self._calls) >= self._most_calls
        if self._too_many:
            return None
        if isinstance(item, Arguments):
            call = self._calls[-1]
            call["function"]["arguments"] += item.text
            return {"tool_calls": [{"index": call["index"], "function": {"arguments": item.text}}]}
        call = {"index": len(self._calls), "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        function = {"name": item.name, "arguments": item.arguments}
        self._calls.append(call | {"function": function.copy()})
        return {"tool_calls": [call | {"function": function}]}

    def _logprobs(self, places: Sequence[TokenLogprobs]) -> dict[str, Any]:
        def entry(token: int, value: float) -> dict[str, Any]:
            data = self._tokenizer.token_bytes(token)
            return {"token": self._token(token), "logprob": value, "bytes": list(data)}

        return {
            "content": [
                entry(place.token, place.logprob) | {"top_logprobs": [entry(*pair) for pair in place.top]}
                for place in places
            ],
            "refusal": None,
        }


class Reply:
    """The envelope that all pieces and the whole of one answer have in common."""

    def __init__(self, kind: str, request_id: str, model: str, clock: Callable[[], float] = time.time) -> None:
        """kind: "chat.completion" or "text_completion"."""
        prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
        self._kind = kind
        self._common = {"id": f"{prefix}-{request_id}", "created": int(clock()), "model": model}

    def piece(self, choices: list[dict[str, Any]], used: dict[str, Any] | None = None) -> dict[str, Any]:
        """One event of a stream."""
        kind = "chat.completion.chunk" if self._kind == "chat.completion" else self._kind
        return self._common | {"object": kind, "choices": choices} | ({"usage": used} if used else {})

    def whole(self, choices: Sequence[Choice], used: dict[str, Any]) -> dict[str, Any]:
        """The answer in one."""
        entries = [choice.whole() for choice in choices]
        return self._common | {"object": self._kind, "choices": entries, "usage": used}
