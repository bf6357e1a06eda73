"""What does a client ask of the engine, and what does the engine remember about it?"""

from __future__ import annotations

import enum
import itertools
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["FinishReason", "InvalidRequestError", "Request", "SamplingParams", "State"]

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
"""Characters of one stop string: that much text at most is held back while a stop may be forming."""


class InvalidRequestError(ValueError):
    """A request that can never run: names the field, what was found and what would be right."""

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"{field_name}: {problem}")
        self.field = field_name
        self.problem = problem


class FinishReason(enum.Enum):
    """Why a request ended; the values are those of vLLM's `finished_reason` label."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens generated
    ABORT = "abort"  # cancelled by the client, or cut off when the worker went down
    ERROR = "error"  # the engine failed on it


class State(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when generation ends.

    Raises InvalidRequestError at construction when a field is out of its range.
    """

    max_tokens: int | None = None
    """Tokens to generate at most, >= 1. None: as many as the context has room for."""
    temperature: float = 1.0
    """0 is greedy; otherwise logits are divided by it before sampling. 0 to 2."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this. Above 0, to 1 (off)."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 is off."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens whatever else runs. None: fresh randomness."""
    stop: tuple[str, ...] = ()
    """Text that ends generation; it is not part of the output."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end generation, besides the model's own end-of-sequence tokens."""
    ignore_eos: bool = False
    """Go on past end-of-sequence tokens: for measurements that need a known number of tokens."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequestError("max_tokens", f"{self.max_tokens} is out of range; at least 1")
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= 2.0):
            raise InvalidRequestError(
                "temperature", f"{self.temperature:g} is out of range; 0 (greedy) to 2, usually 0.2 to 1"
            )
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise InvalidRequestError("top_p", f"{self.top_p:g} is out of range; above 0, to 1 (off)")
        if self.top_k < 0:
            raise InvalidRequestError("top_k", f"{self.top_k} is out of range; 0 (off) or the number of tokens to keep")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InvalidRequestError("seed", f"{self.seed} is out of range; 0 to 2^64 - 1")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError("stop", f"{len(self.stop)} strings; at most {MAX_STOP_STRINGS}")
        for index, text in enumerate(self.stop):
            if not 0 < len(text) <= MAX_STOP_LENGTH:
                raise InvalidRequestError(
                    f"stop[{index}]", f"{len(text)} characters; 1 to {MAX_STOP_LENGTH}, or leave it out"
                )


_ARRIVALS = itertools.count()


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the scheduler: its tokens, how far its KV is computed, and the blocks that hold it.

    `tokens` is prompt and output together, so a preempted request is recomputed exactly as it was first computed.
    """

    id: str
    tokens: list[int]
    params: SamplingParams
    max_tokens: int
    """Tokens to generate at most: that of params, or what the context has room for."""
    priority: int = 0
    """Higher goes first; equal priorities go by arrival."""
    session_id: str = ""
    """Which agent session the turn belongs to: a hint for keeping its blocks, empty if none."""
    arrived: float = 0.0
    """Seconds on the engine's clock, as are the three times below."""

    state: State = State.WAITING
    prompt_tokens: int = field(init=False)
    computed: int = 0
    """Leading tokens whose keys and values are in `blocks`."""
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """Chained digest of each full block of `tokens` that was looked up or published so far."""
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache spared, at the first admission."""
    preemptions: int = 0
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finish_reason: FinishReason | None = None
    arrival: int = field(default_factory=lambda: next(_ARRIVALS))
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.tokens:
            raise InvalidRequestError("prompt", "empty; at least one token")
        self.prompt_tokens = len(self.tokens)
        self.seed = secrets.randbits(64) if self.params.seed is None else self.params.seed

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts the request that goes first to the front."""
        return (-self.priority, self.arrival)

    @property
    def output_tokens(self) -> Sequence[int]:
        """Generated so far."""
        return self.tokens[self.prompt_tokens :]

    @property
    def generated(self) -> int:
        """How many tokens are generated so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def missing(self) -> int:
        """Tokens whose KV is still to be computed before the next token can be sampled; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Only its newest token is missing: a step gives it one row and it yields one token."""
        return self.state is State.RUNNING and self.missing == 1
