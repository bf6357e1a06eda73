"""What does a worker report, and can it be true?  Pure.

Names are vLLM's, which Berth's own worker uses too.  A figure that cannot be true spoils the whole page: who is wrong
about one is not believed about the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

_MOST_COUNTED: Final = 1e15

MOST_RUNNING: Final = 4096.0
"""Requests that one replica decodes at once: eight times the most that any estimate of ours gives one."""
MOST_WAITING: Final = 100_000.0
MOST_REQUESTS_PER_SECOND: Final = 2_000.0
"""Of one replica; likewise the next."""
MOST_TOKENS_PER_SECOND: Final = 10_000_000.0


class LieError(Exception):
    """A page says what cannot be true; the text names metric, found and right."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one worker said at one moment, summed over its series.  All but the first two only grow while it lives."""

    running: float
    waiting: float
    finished: float = 0.0
    """Requests ended, for whatever reason."""
    refused: float = 0.0
    """Requests turned away by a full queue (Berth's worker only; vLLM's queue has no end)."""
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    cache_queries: float = 0.0
    """Prompt tokens looked up in the prefix cache; of them `cache_hits` were found."""
    cache_hits: float = 0.0
    gap_seconds: float = 0.0
    """Token to next token of a request, summed over `gaps` of them."""
    gaps: float = 0.0

    @property
    def in_flight(self) -> float:
        """Requests that are in and not yet answered."""
        return self.running + self.waiting


NAMES: Final = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:request_success_total": "finished",
    "berth:requests_refused_total": "refused",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generated_tokens",
    "vllm:prefix_cache_queries_total": "cache_queries",
    "vllm:prefix_cache_hits_total": "cache_hits",
    "vllm:inter_token_latency_seconds_sum": "gap_seconds",
    "vllm:inter_token_latency_seconds_count": "gaps",
}
_METRICS: Final = {field: name for name, field in NAMES.items()}
_REQUIRED: Final = ("running", "waiting")
_MOST: Final = {"running": MOST_RUNNING, "waiting": MOST_WAITING}
_PREFIXES: Final = tuple(name.encode() for name in NAMES)


def page_of(samples: Iterable[tuple[str, float]]) -> Page:
    """A page from (metric, value) of each of its series; those of other names count for nothing.  Raises LieError."""
    sums: dict[str, float] = {}
    for name, value in samples:
        field = NAMES.get(name)
        if field is not None:
            sums[field] = sums.get(field, 0.0) + _possible(name, value, _most(field))
    for field in _REQUIRED:
        if field not in sums:
            raise LieError(f"{_METRICS[field]} is missing")
    for field, value in sums.items():
        _possible(_METRICS[field], value, _most(field))
    return Page(**sums)


def growth(before: Page, after: Page, seconds: float) -> Page | None:
    """What was added in between; `running` and `waiting` are those of the later page.

    None where a count has fallen: they only grow, so another process answers, and what it did is not known.
    Raises LieError for a growth that no replica can have.
    """
    counted = [field.name for field in fields(Page) if field.name not in _REQUIRED]
    if any(getattr(after, name) < getattr(before, name) for name in counted):
        return None
    grown = {name: getattr(after, name) - getattr(before, name) for name in counted}
    lasting = max(seconds, 1.0)
    for name, most in (
        ("finished", MOST_REQUESTS_PER_SECOND),
        ("prompt_tokens", MOST_TOKENS_PER_SECOND),
        ("generated_tokens", MOST_TOKENS_PER_SECOND),
        ("gap_seconds", MOST_RUNNING),
    ):
        rate = grown[name] / lasting
        if rate > most:
            raise LieError(f"{_METRICS[name]} grew by {rate:.4g} a second: at most {most:.4g} can be true")
    return Page(after.running, after.waiting, **grown)


def _most(field: str) -> float:
    return _MOST.get(field, _MOST_COUNTED)


def _possible(name: str, value: float, most: float) -> float:
    if math.isnan(value) or not 0 <= value <= most:
        raise LieError(f"{name} is {value:.4g}: a number from 0 to {most:.4g} was expected")
    return value
