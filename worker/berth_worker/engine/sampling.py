"""Which token comes next, and does it end the request?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from berth_worker.engine.request import Request, SamplingParams

if TYPE_CHECKING:
    from berth_worker.model.interface import TokenStream

__all__ = ["NonFiniteLogitsError", "StopText", "sample"]

FIRST_CANDIDATES = 512
"""Tokens sorted first for top-p; the whole vocabulary only where their probability does not reach top_p."""

Floats = NDArray[np.floating[Any]]


class NonFiniteLogitsError(ArithmeticError):
    """The model gave NaN or infinity: its weights or its kernels are broken."""


def sample(logits: NDArray[np.float32], request: Request) -> int:
    """The request's next token from its row of logits, float32 [vocab].

    Temperature, then top-k, then top-p, as in transformers and vLLM. The random number is a function of the request's
    seed and of how many tokens it has, so neither the rest of the batch nor a preemption changes the outcome.
    Raises NonFiniteLogitsError.
    """
    best = int(np.argmax(logits))  # of equals the lowest id; NaN counts as the greatest
    if not np.isfinite(logits[best]):
        raise NonFiniteLogitsError(f"request {request.id}: logit of token {best} is {logits[best]}")
    params = request.params
    if params.temperature == 0.0 or params.top_k == 1:
        return best
    tokens, weights = _candidates(logits, params)
    cumulative = np.cumsum(weights)
    uniform = np.random.Generator(np.random.Philox(key=request.seed, counter=request.generated)).random()
    drawn = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(tokens[min(drawn, len(tokens) - 1)])


def _candidates(logits: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.intp], Floats]:
    """Tokens that may be drawn and their unnormalized probabilities, in float64 so that sums do not drift."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    scaled /= params.temperature
    weights = np.exp(scaled)
    if params.top_k == 0 and params.top_p >= 1.0:
        return np.arange(len(weights)), weights
    if params.top_k:
        tokens = _heaviest(weights, params.top_k)
        return _nucleus(tokens, weights[tokens], float(weights[tokens].sum()), params.top_p)
    total = float(weights.sum())
    tokens = _heaviest(weights, FIRST_CANDIDATES)
    if float(weights[tokens].sum()) < params.top_p * total:
        tokens = _heaviest(weights, len(weights))
    return _nucleus(tokens, weights[tokens], total, params.top_p)


def _heaviest(weights: Floats, count: int) -> NDArray[np.intp]:
    """The count tokens of greatest weight, in descending order, of equals the lowest id first."""
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    threshold = np.partition(weights, len(weights) - count)[len(weights) - count]
    tokens = np.flatnonzero(weights >= threshold)
    return tokens[np.argsort(-weights[tokens], kind="stable")][:count]


def _nucleus(tokens: NDArray[np.intp], weights: Floats, total: float, top_p: float) -> tuple[NDArray[np.intp], Floats]:
    """The shortest prefix of tokens, sorted by weight, that reaches top_p of total; at least one token."""
    if top_p >= 1.0:
        return tokens, weights
    keep = int(np.searchsorted(np.cumsum(weights), top_p * total, side="left")) + 1
    return tokens[:keep], weights[:keep]


class StopText:
    """A request's text as it comes, cut at the first stop string.

    Text that may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self._stream = stream
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that is certain once this token is in; sets `stopped` when a stop string is complete."""
        return self._release(self._stream.push(token))

    def flush(self) -> str:
        """What is left when generation ended for another reason than a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._stream.flush())
        if not self.stopped:
            text += self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of text that are the beginning of stop."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
