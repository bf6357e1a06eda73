"""What is in an answer as it comes?  Text, and the calls that this request may make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from berth_worker.server.tool_calls import ForcedCall, Item, ToolCall, ToolText

if TYPE_CHECKING:
    from berth_worker.engine.stream import Chunk

__all__ = ["AnswerItems"]


class AnswerItems:
    """Reads one answer's chunks."""

    def __init__(
        self, tools: Sequence[str], *, parallel: bool = True, call: str | None = None, sure: bool = False
    ) -> None:
        """tools: names of the tools that the answer may call; parallel: whether several, else the first counts;
        call: the tool that the prompt lets it call; sure: whether a grammar has what begins as a call be one."""
        self._tools = ForcedCall(call) if call is not None else ToolText(tools, sure=sure) if tools else None
        self._left = math.inf if parallel else 1
        self._too_many = False
        """The call that goes on is beyond those."""

    def push(self, chunk: Chunk) -> list[Item]:
        """What is certain once this chunk is in, in order."""
        if self._tools is None:
            return [chunk.text] if chunk.text else []
        found = self._tools.push(chunk.text) + (self._tools.flush() if chunk.finish else [])
        return [item for item in found if self._counts(item)]

    def _counts(self, item: Item) -> bool:
        if isinstance(item, ToolCall):
            self._too_many = self._left == 0
            self._left -= not self._too_many
        return isinstance(item, str) or not self._too_many
