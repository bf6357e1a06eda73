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

COLDEST = 1e-5
"""Lower temperatures are greedy: float32 would overflow."""
CUTOFFS = (1e-2, 1e-4)
"""Weights, the greatest being 1, below which tokens are left out before sorting; the next one where too few remain."""

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
    if params.temperature < COLDEST or params.top_k == 1:
        return best
    tokens, weights = _candidates(logits, logits[best], params)
    cumulative = np.cumsum(weights, dtype=np.float64)
    uniform = np.random.Generator(np.random.Philox(key=request.seed, counter=request.generated)).random()
    drawn = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(tokens[min(drawn, len(tokens) - 1)])


def _candidates(logits: Floats, best: np.float32, params: SamplingParams) -> tuple[NDArray[np.intp], Floats]:
    """Tokens that may be drawn and their unnormalized probabilities; all of them where nothing restricts.

    The likeliest token weighs 1; those below a cutoff are left out and only the rest is sorted, where that is enough.
    """
    weights = np.exp((logits - best) * np.float32(1.0 / params.temperature))
    if params.top_k == 0 and params.top_p >= 1.0:
        return np.arange(len(weights)), weights
    total = float(weights.sum(dtype=np.float64))
    tokens = np.arange(len(weights))
    for cutoff in CUTOFFS:
        likely = np.flatnonzero(weights >= cutoff)
        reached = float(weights[likely].sum(dtype=np.float64)) >= params.top_p * total
        if len(likely) >= params.top_k if params.top_k else reached:
            tokens = likely
            break
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")]  # of equals the lowest id first
    if params.top_k:
        tokens = tokens[: params.top_k]
        total = float(weights[tokens].sum(dtype=np.float64))
    if params.top_p < 1.0:
        reach = np.cumsum(weights[tokens], dtype=np.float64)
        tokens = tokens[: int(np.searchsorted(reach, params.top_p * total, side="left")) + 1]
    return tokens, weights[tokens]


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
