"""What does the engine tell whoever watches it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from berth_worker.engine.stream import Finish

__all__ = ["Observer", "Silent", "Stats", "StepReport"]


@dataclass(slots=True)
class StepReport:
    """What one step brought, for metrics."""

    rows: int
    """Tokens that went through the model."""
    preemptions: int = 0
    prefix_queried: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    prompt_tokens: int = 0
    """Of the requests that got their first token, cached ones included."""
    generated: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    """Arrival to first token."""
    gap_seconds: list[float] = field(default_factory=list)
    """Token to token of one request; tokens of one step arrive together and count as one."""
    drafted: int = 0
    """Drafted tokens that ran."""
    accepted: int = 0
    """Of those, tokens that came."""


class Observer(Protocol):
    """Is told what happens, in the engine's thread: must be quick and must not raise."""

    def step(self, report: StepReport) -> None: ...

    def finished(self, finish: Finish, e2e_seconds: float) -> None: ...


class Silent:
    """Nobody watches."""

    def step(self, report: StepReport) -> None:
        pass

    def finished(self, finish: Finish, e2e_seconds: float) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine at this moment."""

    running: int
    waiting: int
    blocks_held: int
    """By requests."""
    blocks: int
    sessions_retained: int
    blocks_retained: int
    """Held by no request, kept for a session's next turn."""
    refused: int = 0
    """Requests turned away so far because the queue was full."""
