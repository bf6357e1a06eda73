"""A model that says what a test wants it to, through the real engine."""

from __future__ import annotations

import itertools
from typing import Any

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
"""Of the tool `weather`, for a city, as the embedded model writes it."""


def script(running: Any, gated: Any, *answers: str) -> None:
    """Let the model say these answers, one request after the other; without drafts."""
    encode = running.engine.tokenizer.encode
    left = itertools.chain.from_iterable([*encode(answer), 2] for answer in answers)

    def say(logits: Any) -> Any:
        logits = logits.clone()
        if len(logits):  # none are computed where a prompt goes on
            logits[-1, next(left)] = 1000.0
        return logits

    gated.fault = say
