"""How does an answer look to a client of /v1/responses?  Items, one after the other, and typed events of each."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from berth_worker.engine.request import FinishReason
from berth_worker.server.answer_items import AnswerItems
from berth_worker.server.events import sent_event
from berth_worker.server.openai_reply import call_id, token_logprobs, usage
from berth_worker.server.tool_calls import Arguments, ToolCall

if TYPE_CHECKING:
    from berth_worker.engine.sampling import TokenLogprobs
    from berth_worker.engine.stream import Chunk, Finish
    from berth_worker.model.interface import Tokenizer
    from berth_worker.server.openai_asked import Asked

__all__ = ["ResponseReply"]

Event = dict[str, Any]


class ResponseReply:
    """One response as it comes."""

    last = b""

    def __init__(
        self,
        asked: Asked,
        items: AnswerItems,
        tokenizer: Tokenizer,
        request_id: str,
        model: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._items, self._tokenizer, self._clock = items, tokenizer, clock
        self._common = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(clock()),
            "model": model,
            "temperature": asked.params.temperature,
            "top_p": asked.params.top_p,
            "parallel_tool_calls": asked.parallel_calls,
            "background": False,
            "store": False,
            "previous_response_id": None,
            "truncation": "disabled",
            **(asked.repeated or {}),
        }
        self._output: list[dict[str, Any]] = []
        self._open = False
        """Whether the last item goes on."""
        self._places: list[TokenLogprobs] = []
        """Of tokens whose text has not come."""
        self._finish: Finish | None = None
        self._sent = 0

    def begun(self) -> list[Event]:
        """See Reply."""
        response = self._response("in_progress")
        return [self._event("created", response=response), self._event("in_progress", response=response)]

    def take(self, index: int, chunk: Chunk) -> list[Event]:
        """See Reply.  index: there is one answer alone."""
        self._places += chunk.logprobs
        events: list[Event] = []
        for item in self._items.push(chunk):
            events += self._text(item) if isinstance(item, str) else self._call(item)
        if chunk.finish is not None:
            self._finish = chunk.finish
            if not self._output:
                events += self._begin()
            whole = chunk.finish.reason is not FinishReason.LENGTH
            events += self._end("completed" if whole else "incomplete")
        return events

    def ended(self) -> list[Event]:
        """See Reply."""
        whole = self.whole()
        return [self._event(whole["status"], response=whole)]

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """See Reply."""
        described = {"code": "server_error", "message": error["error"]["message"]}
        return [self._event("failed", response=self._response("failed") | {"error": described})]

    def whole(self) -> dict[str, Any]:
        """See Reply."""
        assert self._finish is not None  # noqa: S101 - the last chunk has it
        if self._finish.reason is FinishReason.LENGTH:
            return self._response("incomplete") | {"incomplete_details": {"reason": "max_output_tokens"}}
        return self._response("completed") | {"completed_at": int(self._clock())}

    def encoded(self, events: Sequence[Event]) -> bytes:
        """See Reply."""
        return b"".join(sent_event(event, event["type"]) for event in events)

    def _response(self, status: str) -> dict[str, Any]:
        return self._common | {
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": list(self._output),
            "usage": None if self._finish is None else _usage(self._finish),
        }

    # -- items -------------------------------------------------------------------------------------------------------

    def _text(self, text: str) -> list[Event]:
        events = [] if self._open and self._item["type"] == "message" else self._begin()
        logprobs, self._places = token_logprobs(self._places, self._tokenizer), []
        part = self._item["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        return [*events, self._of_item("output_text.delta", content_index=0, delta=text, logprobs=logprobs)]

    def _call(self, item: ToolCall | Arguments) -> list[Event]:
        self._places, events = [], []  # a call has no place for them
        if isinstance(item, ToolCall):
            name = f"fc_{uuid.uuid4().hex}"
            events = self._begin(
                {"id": name, "type": "function_call", "call_id": call_id(), "name": item.name, "arguments": ""}
            )
        text = item.text if isinstance(item, Arguments) else item.arguments
        self._item["arguments"] += text
        return [*events, self._of_item("function_call_arguments.delta", delta=text)] if text else events

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    def _begin(self, item: dict[str, Any] | None = None) -> list[Event]:
        """A call, or a message."""
        events = self._end("completed")
        self._open = True
        empty = item or {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "content": []}
        empty["status"] = "in_progress"
        self._output.append(empty | ({} if item else {"content": [_part()]}))
        events.append(self._event("output_item.added", output_index=len(self._output) - 1, item=empty))
        if item is None:
            events.append(self._of_item("content_part.added", content_index=0, part=_part()))
        return events

    def _end(self, status: str) -> list[Event]:
        """Of the item that goes on, if one does."""
        if not self._open:
            return []
        item, events = self._item, []
        if item["type"] == "message":
            events = self._text("") if self._places else []
            (part,) = item["content"]
            events += [
                self._of_item("output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]),
                self._of_item("content_part.done", content_index=0, part=part),
            ]
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._of_item("function_call_arguments.done", **done))
        self._open = False
        item["status"] = status
        return [*events, self._event("output_item.done", output_index=len(self._output) - 1, item=item)]

    # -- events ------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **rest: Any) -> Event:
        self._sent += 1
        return {"type": f"response.{kind}", "sequence_number": self._sent - 1, **rest}

    def _of_item(self, kind: str, **rest: Any) -> Event:
        return self._event(kind, item_id=self._item["id"], output_index=len(self._output) - 1, **rest)


def _part() -> dict[str, Any]:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _usage(finish: Finish) -> dict[str, Any]:
    used = usage([(0, finish)])
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {**used["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }
