"""Which token comes next?

The order of things is vLLM's (its v1/sample/sampler.py): logit bias and min_tokens, then the penalties for repetition,
frequency and presence, then what the output may be, then temperature, min-p, top-k and top-p. Log-probabilities are
those of the model itself, before any of it: a token that a grammar forces may have a low one.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berth_worker.engine.constraint import Constraint
from berth_worker.engine.request import Request, SamplingParams

__all__ = ["NonFiniteLogitsError", "Sampler", "TokenLogprobs", "sample"]

COLDEST = 1e-5
"""Lower temperatures are greedy: float32 would overflow."""
CUTOFFS = (1e-4, 1e-6)
"""Weights, the greatest being 1, below which top-p leaves tokens out at once; the next one where too few remain."""
RANK_CUTOFFS = (1e-2, 1e-4)
"""The same for top-k, which asks for fewer."""
LIGHTEST = np.float32(-80.0)
"""Logarithm of the least weight: exp is ten times slower where it underflows."""
STRIDE = 256
"""Weights that are summed together before one of them is looked for."""

Floats = NDArray[np.floating[Any]]


class NonFiniteLogitsError(ArithmeticError):
    """The model gave NaN or infinity: its weights or its kernels are broken."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the probabilities that the model gave at one place of the output."""

    token: int
    logprob: float
    """Of the token that came."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens, the likeliest first and of equals the lowest id, as many as were asked for."""


class _Tokens:
    """A growing set of token ids, as an array to index with."""

    def __init__(self, vocab_size: int, tokens: Iterable[int] = ()) -> None:
        self.counts = np.zeros(vocab_size, dtype=np.int32)
        self._ids = np.empty(64, dtype=np.intp)
        self._used = 0
        for token in tokens:
            self.add(token)

    @property
    def ids(self) -> NDArray[np.intp]:
        return self._ids[: self._used]

    def add(self, token: int) -> None:
        if not self.counts[token]:
            if self._used == len(self._ids):
                self._ids = np.resize(self._ids, 2 * self._used)
            self._ids[self._used] = token
            self._used += 1
        self.counts[token] += 1


class Sampler:
    """Chooses one request's tokens, place after place."""

    def __init__(self, request: Request, ends: Collection[int] = (), constraint: Constraint | None = None) -> None:
        """ends: tokens that end the request, which do not come before min_tokens; constraint: what may come at all."""
        params = request.params
        self._request = request
        self._constraint = constraint
        self._ends = np.fromiter(ends, dtype=np.intp)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), dtype=np.intp)
        self._bias = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self._greedy = params.temperature < COLDEST or params.top_k == 1
        self._plain = not (params.logit_bias or params.penalized or (params.min_tokens and len(self._ends)))
        self._output: _Tokens | None = None
        self._seen: _Tokens | None = None
        self._taken = 0
        """Of the request's tokens, those that are counted."""

    def next(self, logits: NDArray[np.float32], best: int) -> int:
        """The next token from its row of logits, float32 [vocab], which is left as it is.

        best: the token with the greatest logit; of equals the first, and NaN counts as the greatest.
        The random number is a function of the request's seed and of how many tokens it has, so neither the rest of the
        batch nor a preemption nor a draft changes the outcome. Raises NonFiniteLogitsError.
        """
        if not math.isfinite(logits[best]):
            raise NonFiniteLogitsError(f"request {self._request.id}: logit of token {best} is {logits[best]}")
        if self._constraint is not None:
            return self._constrained(logits, best, self._constraint)
        if not self._plain:
            logits = self._adjusted(logits)
            best = int(logits.argmax())
        return self._chosen(logits, best)

    def _chosen(self, logits: NDArray[np.float32], best: int) -> int:
        if self._greedy:
            return best
        tokens, weights = _candidates(logits, logits[best], self._request.params)
        drawn = _draw(weights, _uniform(self._request.seed, self._request.generated))
        return drawn if tokens is None else int(tokens[drawn])

    def _constrained(self, logits: NDArray[np.float32], best: int, constraint: Constraint) -> int:
        """The next token among those that may come.  What is cheap is tried first: most of an output needs no mask."""
        if forced := constraint.forced():
            return forced[0]
        if self._greedy and self._plain and constraint.fits([best]):
            return best
        bits = np.unpackbits(np.frombuffer(constraint.mask(), np.uint8), count=len(logits), bitorder="little")
        barred = np.flatnonzero(bits == 0)
        if len(barred) < len(bits) // 8:  # within a string nearly all may come: those are not gathered
            left = logits.copy() if self._plain else self._adjusted(logits)
            left[barred] = -np.inf
            best = int(left.argmax())
            token = self._chosen(left, best)
            return token if bits[token] else best  # what is barred weighs next to nothing, which is not nothing
        allowed = np.flatnonzero(bits.view(np.bool_))
        left = (logits if self._plain else self._adjusted(logits))[allowed]
        best = int(left.argmax())
        if left[best] == -np.inf:  # min_tokens bars all that there is: the output ends before, as it must
            left = logits[allowed]
            best = int(left.argmax())
        return int(allowed[self._chosen(left, best)])

    def logprobs(self, logits: NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
        """What the model thought of the token and of the `top` likeliest; logits as it gave them."""
        greatest = logits.max()
        gaps = logits - greatest
        likely = np.arange(0)
        if top:
            likely = np.flatnonzero(gaps >= _value_of_rank(gaps, min(top, len(gaps))))
            likely = likely[np.argsort(-logits[likely], kind="stable")[:top]]
        total = float(greatest) + math.log(float(np.exp(gaps, out=gaps).sum()))
        pairs = tuple((int(i), float(logits[i]) - total) for i in likely)
        return TokenLogprobs(token, float(logits[token]) - total, pairs)

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits after bias, min_tokens and penalties; a copy.

        Repetition as in CTRL (Keskar et al. 2019, section 4.1) and transformers, over prompt and output; frequency and
        presence as in OpenAI's API, over the output.
        """
        request, params = self._request, self._request.params
        logits = logits.copy()
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias
        if request.generated < params.min_tokens:
            logits[self._ends] = -np.inf
        if params.penalized:
            output, seen = self._count(len(logits))
            if params.repetition_penalty != 1.0:
                values = logits[seen.ids]
                penalty = np.float32(params.repetition_penalty)
                logits[seen.ids] = np.where(values > 0, values / penalty, values * penalty)
            if params.frequency_penalty or params.presence_penalty:
                counts = output.counts[output.ids].astype(np.float32)
                logits[output.ids] -= params.frequency_penalty * counts + np.float32(params.presence_penalty)
        return logits

    def _count(self, vocab_size: int) -> tuple[_Tokens, _Tokens]:
        """The tokens of the output, and those of prompt and output."""
        tokens, prompt = self._request.tokens, self._request.prompt_tokens
        if self._output is None or self._seen is None:
            self._output = _Tokens(vocab_size)
            self._seen = _Tokens(vocab_size, set(tokens[:prompt]))
            self._taken = prompt
        for token in tokens[self._taken :]:
            self._output.add(token)
            self._seen.add(token)
        self._taken = len(tokens)
        return self._output, self._seen


def sample(logits: NDArray[np.float32], request: Request) -> int:
    """The request's next token; see Sampler.next."""
    return Sampler(request).next(logits, int(logits.argmax()))


def _uniform(seed: int, place: int) -> float:
    """A number from 0 to below 1 that belongs to the seed and the place."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, place), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _draw(weights: Floats, uniform: float) -> int:
    """The index at which the running sum of weights passes this share of their sum; never one that weighs nothing."""
    if len(weights) <= STRIDE:
        inside = np.cumsum(weights, dtype=np.float64)
        return int(np.searchsorted(inside, min(uniform * inside[-1], np.nextafter(inside[-1], 0.0)), side="right"))
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), STRIDE)).astype(np.float64).cumsum()
    wanted = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, wanted, side="right")), len(blocks) - 1)
    inside = np.cumsum(weights[block * STRIDE : (block + 1) * STRIDE], dtype=np.float64)
    wanted -= blocks[block - 1] if block else 0.0
    found = int(np.searchsorted(inside, min(wanted, np.nextafter(inside[-1], 0.0)), side="right"))
    return block * STRIDE + found


def _candidates(logits: Floats, best: np.float32, params: SamplingParams) -> tuple[NDArray[np.intp] | None, Floats]:
    """Tokens that may be drawn (None: all), in order of id, and their unnormalized probabilities.

    The likeliest token weighs 1. Nothing is sorted but what stands near a cut, and only top-p by itself and no cut at
    all ask for the weights of the whole vocabulary.
    """
    gaps = logits - best
    if 0 < params.top_k < len(gaps) or params.min_p > 0.0:
        tokens = _near(gaps, params)
        weights = _weights(gaps[tokens], params)
        total = weights.sum()
    else:
        weights = _weights(gaps, params)
        if params.top_p >= 1.0:
            return None, weights
        total = weights.sum()
        for cutoff in CUTOFFS:
            tokens = np.flatnonzero(weights >= cutoff)
            kept = weights[tokens]
            if kept.sum() >= params.top_p * total:
                weights = kept
                break
        else:
            tokens = np.arange(len(weights))
    if params.top_p < 1.0:
        nucleus = _nucleus(weights, params.top_p * float(total))
        tokens, weights = tokens[nucleus], weights[nucleus]
    return tokens, weights


def _weights(gaps: Floats, params: SamplingParams) -> Floats:
    """Unnormalized probabilities, in place of how far logits are below the greatest."""
    if params.temperature != 1.0:  # the default
        gaps *= np.float32(1.0 / params.temperature)
    if gaps.min() < LIGHTEST:
        np.maximum(gaps, LIGHTEST, out=gaps)
    return np.exp(gaps, out=gaps)


def _near(gaps: Floats, params: SamplingParams) -> NDArray[np.intp]:
    """The tokens that top-k and min-p leave, by how far their logits are below the greatest."""
    least = params.temperature * math.log(params.min_p) if params.min_p else -math.inf
    rank = params.top_k if 0 < params.top_k < len(gaps) else 0
    if not rank:
        return np.flatnonzero(gaps >= np.float32(least))
    last = _value_of_rank(gaps, rank, params.temperature)
    return _first(np.flatnonzero(gaps >= max(last, np.float32(least))), gaps, last, rank)


def _value_of_rank(values: Floats, rank: int, scale: float = 1.0) -> np.float32:
    """The value that stands at this rank, the greatest at 1; quick where the greatest are within a few scales of 0."""
    for cutoff in RANK_CUTOFFS:
        near = values[values >= np.float32(scale * math.log(cutoff))]
        if len(near) >= rank:
            values = near
            break
    return np.float32(np.partition(values, -rank)[-rank])


def _nucleus(weights: Floats, wanted: float) -> NDArray[np.intp]:
    """Indices of the fewest heaviest that together weigh as much as wanted; of equals the first."""
    heaviest = np.sort(weights)[::-1]  # values alone, which numpy sorts by SIMD; not so indices, or stably
    count = int(np.searchsorted(np.cumsum(heaviest, dtype=np.float64), wanted, side="left")) + 1
    if count >= len(weights):
        return np.arange(len(weights))
    return _first(np.flatnonzero(weights >= heaviest[count - 1]), weights, heaviest[count - 1], count)


def _first(indices: NDArray[np.intp], values: Floats, least: np.float32, count: int) -> NDArray[np.intp]:
    """As many of the indices: of those whose value is the least, the last are left out."""
    surplus = len(indices) - count
    return indices if surplus <= 0 else np.delete(indices, np.flatnonzero(values[indices] == least)[-surplus:])
