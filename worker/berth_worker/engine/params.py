"""How does a client want its tokens chosen, and when is it enough?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["InvalidRequestError", "SamplingParams"]

MAX_BIASES = 1024
MAX_LOGPROBS = 20
"""As OpenAI's API and vLLM allow."""
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
"""Characters of one stop string: that much text at most is held back while a stop may be forming."""

_ABOVE_0 = math.nextafter(0.0, 1.0)
_LEAST_PENALTY = 1e-30
"""Logits are divided by it, in float32."""
_RANGES: dict[str, tuple[float, float, str]] = {
    "max_tokens": (1, math.inf, "at least 1"),
    "temperature": (0.0, 2.0, "0 (greedy) to 2, usually 0.2 to 1"),
    "top_p": (_ABOVE_0, 1.0, "above 0, to 1 (off)"),
    "top_k": (0, math.inf, "0 (off) or the number of tokens to keep"),
    "min_p": (0.0, 1.0, "0 (off) to 1"),
    "repetition_penalty": (_LEAST_PENALTY, 2.0, "above 0, to 2; 1 is off"),
    "presence_penalty": (-2.0, 2.0, "-2 to 2; 0 is off"),
    "frequency_penalty": (-2.0, 2.0, "-2 to 2; 0 is off"),
    "logprobs": (0, MAX_LOGPROBS, f"0 (the token's own alone) to {MAX_LOGPROBS}"),
    "min_tokens": (0, math.inf, "0 to max_tokens"),
    "seed": (0, 2**64 - 1, "0 to 2^64 - 1"),
}
"""Field to the least and the greatest value that it can have, and what to say of another."""


class InvalidRequestError(ValueError):
    """A request that can never run: names the field, what was found and what would be right."""

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"{field_name}: {problem}")
        self.field = field_name
        self.problem = problem


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
    min_p: float = 0.0
    """Sample from tokens at least this likely relative to the likeliest (Nguyen et al. 2024). 0 (off) to 1."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or output are divided by it if positive, else multiplied. Above 0, to 2; 1 is off."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens in the output. -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens in the output, as many times as they stand there. -2 to 2."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token to what is added to its logit before all else, -100 to 100."""
    logprobs: int | None = None
    """Report each token's log-probability in the model's own distribution, and those of so many likeliest, 0 to 20."""
    min_tokens: int = 0
    """Before so many tokens no token ends generation, whatever its logit; stop strings still do."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens whatever else runs. None: fresh randomness."""
    stop: tuple[str, ...] = ()
    """Text that ends generation; it is not part of the output."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end generation, besides the model's own end-of-sequence tokens."""
    ignore_eos: bool = False
    """Go on past end-of-sequence tokens: for measurements that need a known number of tokens."""

    def __post_init__(self) -> None:
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # so NaN is refused too
                found = f"{value:g}" if isinstance(value, float) else value  # an integer may be beyond all floats
                raise InvalidRequestError(name, f"{found} is out of range; {meaning}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                "min_tokens", f"{self.min_tokens} is out of range; 0 to max_tokens ({self.max_tokens})"
            )
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidRequestError("logit_bias", f"{len(self.logit_bias)} tokens; at most {MAX_BIASES}")
        for token, bias in self.logit_bias.items():
            if not -100.0 <= bias <= 100.0:
                raise InvalidRequestError(f"logit_bias[{token}]", f"{bias:g} is out of range; -100 to 100")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError("stop", f"{len(self.stop)} strings; at most {MAX_STOP_STRINGS}")
        for index, text in enumerate(self.stop):
            if not 0 < len(text) <= MAX_STOP_LENGTH:
                raise InvalidRequestError(
                    f"stop[{index}]", f"{len(text)} characters; 1 to {MAX_STOP_LENGTH}, or leave it out"
                )

    @property
    def penalized(self) -> bool:
        """Whether what was said before changes what comes next."""
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty or self.frequency_penalty)
