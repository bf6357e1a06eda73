"""Do workers decode as fast as their ServingProfile says?  Pure.

The profile foretells the mean gap between a request's tokens from how many requests decoded at once and how much
prompt was prefilled meanwhile.  With b(t) requests decoding, step(b) the profile's step time at the pool's context
length, and a share p of the time spent on prefill (uncached prompt tokens over the profile's prefill speed):

    tokens = integral of b / step(b)      gap = (integral of b) / tokens / (1 - p)

so each moment counts by the tokens it should have brought (`planner.capacity` has the same 1 - p).  Speed is the gap
foretold over the gap seen.  b(t) is sampled at each reading: hence a verdict needs many readings, over a quarter of an
hour, all on the same side.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import numpy as np

from berth_operator.api import ObjectMeta, Provenance, ProvenanceMethod, ServingProfile
from berth_operator.api.inference_pool import ProfileDrift
from berth_operator.load.page import Page
from berth_operator.planner.speed import profile_speed

TOLERANCE: Final = 0.2
"""A profile is contradicted by a speed that differs by more."""
HEALED: Final = 0.15
"""... and borne out again by one that differs by less."""
STEP_PERCENT: Final = 5
"""What status shows is rounded to this, and changes by at least twice as much and a tenth."""
_LEAST_GAPS: Final = 100
_LEAST_DECODING_SECONDS: Final = 5.0
_LEAST_FINISHED: Final = 20
_MOST_PREFILL: Final = 0.9
_THOUSANDTH: Final = Decimal("0.001")


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """How long is long."""

    bucket_s: float = 120.0
    """Readings are summed over this long; one such sum gives one speed."""
    lasting_s: float = 900.0
    """Every busy sum of this long must be on the same side of the profile."""
    least_buckets: int = 4
    """... and there must be so many of them."""


@dataclass(slots=True)
class Bucket:
    """Readings of all workers of one pool on one hardware class, summed over a while."""

    began: float
    worker_seconds: float = 0.0
    gap_seconds: float = 0.0
    gaps: float = 0.0
    uncached_tokens: float = 0.0
    finished: float = 0.0
    context_tokens: float = 0.0
    """KV tokens of the finished requests on average while they decoded, summed over them."""
    decoding: Counter[int] = field(default_factory=Counter)
    """Readings by requests running at that moment."""

    @property
    def busy(self) -> bool:
        """Enough was decoded to say how fast."""
        return self.gaps >= _LEAST_GAPS and self.gap_seconds >= _LEAST_DECODING_SECONDS and bool(self.decoding)

    @property
    def concurrency(self) -> float:
        """Requests that decoded at once, while any did."""
        return sum(b * n for b, n in self.decoding.items()) / max(1, self.decoding.total())


@dataclass(slots=True)
class Evidence:
    """The latest buckets; at most as many as last as long as a verdict needs."""

    policy: DriftPolicy
    buckets: deque[Bucket] = field(default_factory=deque)
    _judged: tuple[object, ProfileDrift | None] | None = None

    def add(self, at: float, seconds: float, grown: Page) -> None:
        """What one worker did in the `seconds` up to `at`."""
        if not self.buckets or at - self.buckets[-1].began >= self.policy.bucket_s:
            self.buckets.append(Bucket(at))
            while self.buckets[0].began < at - self.policy.lasting_s - 2 * self.policy.bucket_s:
                self.buckets.popleft()
        now = self.buckets[-1]
        now.worker_seconds += seconds
        now.gap_seconds += grown.gap_seconds
        now.gaps += grown.gaps
        now.uncached_tokens += max(0.0, grown.prompt_tokens - grown.cache_hits)
        now.finished += grown.finished
        now.context_tokens += grown.prompt_tokens + grown.generated_tokens / 2
        if grown.running >= 1:
            now.decoding[round(grown.running)] += 1

    def verdict(
        self, profile: ServingProfile, declared_context: float, before: ProfileDrift | None
    ) -> ProfileDrift | None:
        """`judge`, once a bucket.  `declared_context`: KV tokens of a request, until enough were seen."""
        stamp = (self.buckets[-1].began, profile, before)
        if self._judged is None or self._judged[0] != stamp:
            self._judged = (stamp, judge(self.lasting(), profile, declared_context, before))
        return self._judged[1]

    def lasting(self) -> list[Bucket]:
        """The busy buckets that are full; empty while fewer than a verdict needs, or where they do not reach back."""
        full = [b for b in list(self.buckets)[:-1] if b.busy]
        now = self.buckets[-1].began if self.buckets else 0.0
        reach = bool(full) and now - full[0].began >= self.policy.lasting_s
        return full if reach and len(full) >= self.policy.least_buckets else []


def speeds(buckets: Sequence[Bucket], profile: ServingProfile, context_tokens: float) -> list[float]:
    """Speed seen, as a share of the profile's, of each bucket.  `context_tokens`: KV of a request, on average."""
    speed = profile_speed(profile, context_tokens)
    found = []
    for bucket in buckets:
        b = np.array(list(bucket.decoding), dtype=np.float64)
        readings = np.array(list(bucket.decoding.values()), dtype=np.float64)
        step = np.interp(b, speed.concurrency, speed.step_seconds)
        decode_gap = float((b * readings).sum() / (b * readings / step).sum())
        prefill = bucket.uncached_tokens / speed.prefill_tokens_per_second / max(bucket.worker_seconds, 1e-9)
        gap = decode_gap / (1 - min(prefill, _MOST_PREFILL))
        found.append(gap / (bucket.gap_seconds / bucket.gaps))
    return found


def judge(
    buckets: Sequence[Bucket], profile: ServingProfile, declared_context: float, before: ProfileDrift | None
) -> ProfileDrift | None:
    """Whether a profile is contradicted; `before` is what was last said of it, which stands until more is known."""
    if not buckets:
        return before
    finished = sum(bucket.finished for bucket in buckets)
    enough = finished >= _LEAST_FINISHED
    context = sum(bucket.context_tokens for bucket in buckets) / finished if enough else declared_context
    ratios = speeds(buckets, profile, context)
    weights = [bucket.gaps for bucket in buckets]
    overall = float(np.average(ratios, weights=weights))
    slow, fast = max(ratios) < 1 - TOLERANCE, min(ratios) > 1 + TOLERANCE
    if not slow and not fast:
        return None if abs(overall - 1) <= HEALED else before
    percent = max(STEP_PERCENT, round(100 * overall / STEP_PERCENT) * STEP_PERCENT)
    if before is not None and abs(percent - before.speed_percent) < max(2 * STEP_PERCENT, before.speed_percent / 10):
        return before
    concurrency = float(np.average([bucket.concurrency for bucket in buckets], weights=weights))
    return ProfileDrift(
        profile=profile.metadata.name,
        hardware_class=profile.spec.hardware_class,
        speed_percent=percent,
        concurrency=max(1, round(concurrency)),
    )


def corrected(profile: ServingProfile, drift: ProfileDrift, seen_by: str, date: str) -> ServingProfile:
    """The profile with its decode speeds as they were seen, under the same name.

    `seen_by`: the pool (`namespace/name`).  Prefill is left as it is: metrics do not tell it apart from waiting.
    """
    points = [
        point.model_copy(
            update={
                "decode_tokens_per_second": _share(point.decode_tokens_per_second, drift.speed_percent),
                "inter_token_latency_p99": point.inter_token_latency_p99 * 100 / drift.speed_percent,
            }
        )
        for point in profile.spec.points
    ]
    old = profile.spec.provenance
    source = (
        f"workers of pool {seen_by} decode at {drift.speed_percent}% of this profile's speed, seen at about"
        f" {drift.concurrency} at once; before: {old.method.value}, {old.source}"
    )
    provenance = Provenance(method=ProvenanceMethod.MEASURED, source=source[:1024], date=date)
    spec = profile.spec.model_copy(update={"points": points, "provenance": provenance})
    return ServingProfile(metadata=ObjectMeta(name=profile.metadata.name), spec=spec)


def _share(value: Decimal, percent: int) -> Decimal:
    return max(_THOUSANDTH, (value * percent / 100).quantize(_THOUSANDTH))
