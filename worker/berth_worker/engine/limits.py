"""What does one engine allow, and does a request fit it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from berth_worker.engine.request import InvalidRequestError, SamplingParams

__all__ = ["SPECULATIONS", "EngineConfig", "NotAcceptingError", "Speculation", "allowed_tokens"]

Speculation = Literal["prompt-lookup", "off"]
SPECULATIONS: tuple[Speculation, ...] = get_args(Speculation)


class NotAcceptingError(RuntimeError):
    """The engine takes no new requests: it drains, was stopped, or has failed."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine."""

    max_running: int = 16
    """Requests in one step."""
    max_waiting: int = 64
    """Requests that wait beyond those that run; the next one is refused."""
    max_context_tokens: int = 4096
    """Prompt and output of one request together."""
    kv_cache_tokens: int = 16 * 4096
    """Tokens whose keys and values all requests and the prefix cache share; rounded up to blocks."""
    token_budget: int = 256
    """Rows of one step at most, and of a prompt's chunk while no stream runs beside it."""
    gap_seconds: float = 0.02
    """Running streams wait for their next token at most so long while prompts are read, or twice as long as they would
    without, if that is more."""
    promised_gap_seconds: float = math.inf
    """The p99 promised between tokens: beside running streams, prompts and drafts never stretch a step beyond it."""
    speculation: Speculation = "prompt-lookup"
    """Whether the next tokens are guessed from earlier ones and verified several a step. Changes no output."""
    session_seconds: float = 300.0
    """A session's blocks are kept for its next turn for so long, unless requests need the memory; 0: not at all."""
    stall_seconds: float = 120.0
    """A step that takes longer counts as stuck."""

    def __post_init__(self) -> None:
        if self.speculation not in SPECULATIONS:
            raise ValueError(f"speculation: {self.speculation!r}; one of {', '.join(SPECULATIONS)}")
        for name in ("gap_seconds", "session_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)}; 0 or more")
        if not self.promised_gap_seconds > 0:
            raise ValueError(f"promised_gap_seconds: {self.promised_gap_seconds}; more than 0")
        if self.max_context_tokens < 2:
            raise ValueError(f"max_context_tokens: {self.max_context_tokens}; at least 2: a prompt and an answer")
        if self.max_context_tokens > self.kv_cache_tokens:
            raise ValueError(
                f"kv_cache_tokens: {self.kv_cache_tokens} is less than max_context_tokens ({self.max_context_tokens}): "
                "one request of full length must fit"
            )


def allowed_tokens(config: EngineConfig, vocab_size: int, prompt: Sequence[int], params: SamplingParams) -> int:
    """How many tokens the request may generate: params.max_tokens, or all that the context has room for.

    Raises InvalidRequestError for a prompt that is empty, too long or no text of this model, for a max_tokens beyond
    the room that the prompt leaves, and where no token is left to come before the end.
    """
    context = config.max_context_tokens
    if not prompt:
        raise InvalidRequestError("prompt", "empty; at least one token")
    if len(prompt) >= context:
        raise InvalidRequestError(
            "prompt",
            f"{len(prompt)} tokens are too many; at most {context - 1}, to generate one in a context of {context}",
        )
    for index, token in enumerate(prompt):
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(f"prompt[{index}]", f"token {token} is out of range; 0 to {vocab_size - 1}")
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token in ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(f"{name}[{token}]", f"no such token; 0 to {vocab_size - 1}")
    if params.min_tokens and len(set(params.stop_token_ids)) == vocab_size:
        raise InvalidRequestError(
            "stop_token_ids",
            f"all {vocab_size} tokens, and {params.min_tokens} others first (min_tokens): none is left",
        )
    room = context - len(prompt)
    if params.max_tokens is None:
        return room
    if params.max_tokens > room:
        raise InvalidRequestError(
            "max_tokens",
            f"{params.max_tokens} is out of range; 1 to {room} after a prompt of {len(prompt)} tokens "
            f"in a context of {context}",
        )
    return params.max_tokens
