"""What does a client ask of the engine, and what does the engine remember about it?"""

from __future__ import annotations

import enum
import itertools
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from berth_worker.engine.params import InvalidRequestError, SamplingParams

__all__ = ["FinishReason", "InvalidRequestError", "Request", "SamplingParams", "State"]


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
    """Higher goes first."""
    session_id: str = ""
    """Which agent session the turn belongs to: a hint for keeping its blocks, empty if none."""
    arrived: float = 0.0
    """Seconds on the engine's clock, as are the three times below."""

    state: State = State.WAITING
    prompt_tokens: int = field(init=False)
    computed: int = 0
    """Leading tokens whose keys and values are in `blocks`."""
    blocks: array[int] = field(default_factory=lambda: array("i"))
    """An array, so that a step's batch copies it whole."""
    digests: list[bytes] = field(default_factory=list)
    """Chained digest of each full block of `tokens` that was looked up or published so far."""
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache spared, at the first admission."""
    unread: int = 0
    """Prompt tokens still to be read, by what was cached when it came."""
    long: bool = False
    """What is missing of its prompt, while it waits or is read, is more than one step reads."""
    lost: bool = False
    """Of that, more than one step reads had been computed here, and others have pushed it out."""
    turn: float = 0.0
    """When its prompt is to be read, among those of its priority: the earlier the lower."""
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
        """Sorts the request that goes on longest to the front: the last one makes room where memory is short."""
        return (-self.priority, self.arrival)

    @property
    def place(self) -> tuple[int, float, int]:
        """Sorts the request whose prompt is read first to the front."""
        return (-self.priority, self.turn, self.arrival)

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
