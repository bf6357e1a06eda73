"""What would follow if figures that are in circulation were true?  Named sets for what-if questions, never truth.

News figures of April 2026 for Llama-3-8B, Graviton3 with 64 cores, A10G and L4: 45, 120 and 180 tokens/s, .08, .25 and
.18 USD per million tokens.  They contradict themselves and the chips' memory bandwidth; `berth crossover` says how.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from berth_operator.api import Quantization, ServingProfile


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of one class."""

    hardware_class: str
    tokens_per_second: Decimal
    usd_per_million_tokens: Decimal


@dataclass(frozen=True, slots=True)
class WhatIfSet:
    """Claims of one source about one model."""

    name: str
    source: str
    date: str
    model: str
    claims: tuple[Claim, ...]


NEWS_2026_04: Final = WhatIfSet(
    "news-2026-04",
    "news figures of April 2026",
    "2026-04-30",
    "llama-3-8b-instruct",
    (
        Claim("graviton3-c7g-16xl", Decimal(45), Decimal("0.08")),
        Claim("a10g", Decimal(120), Decimal("0.25")),
        Claim("l4", Decimal(180), Decimal("0.18")),
    ),
)

SETS: Final[Mapping[str, WhatIfSet]] = MappingProxyType({NEWS_2026_04.name: NEWS_2026_04})


def profiles(found: WhatIfSet, quantization: Quantization) -> list[ServingProfile]:
    """The claims as profiles: one request at a time, because nothing is said of more; prompts cost nothing."""
    return [
        ServingProfile.model_validate(
            {
                "metadata": {"name": f"{found.name}-{claim.hardware_class}"},
                "spec": {
                    "model": found.model,
                    "quantization": quantization.value,
                    "hardwareClass": claim.hardware_class,
                    "runtime": "Berth" if claim.hardware_class.startswith("graviton") else "VLLM",
                    "points": [
                        {
                            "concurrency": 1,
                            "contextTokens": 1,
                            "decodeTokensPerSecond": f"{claim.tokens_per_second:f}",
                            "interTokenLatencyP99": f"{1000 / claim.tokens_per_second:.3f}ms",
                        }
                    ],
                    "prefillTokensPerSecond": "1000000000",
                    "kvCacheTokens": 8192,
                    "provenance": {"method": "Published", "source": found.source, "date": found.date},
                },
            }
        )
        for claim in found.claims
    ]


def implied(claim: Claim, usd_per_hour: Decimal) -> tuple[Decimal, Decimal]:
    """(USD per million tokens at that speed and price, tokens/s that the claimed cost would take)."""
    per_million = usd_per_hour / 3600 / claim.tokens_per_second * 1_000_000
    return per_million, usd_per_hour / 3600 / claim.usd_per_million_tokens * 1_000_000
