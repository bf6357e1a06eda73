"""Which demand is planned for, given what was observed?  Fast up, slow down, asleep when idle for long.  Pure.

Of a pool's workers, over a window of T seconds with A arrivals (requests ended, plus growth of those in flight, plus
refused ones) and L requests in flight on average:

    rate      = A / T
    sessions  = L + rate x think time            those that wait for an answer and those that think (Little's law)
    estimate  = max(rate, sessions / (think time + turn objective))

The second term is what `api.resolve` makes of declared sessions.  It is the larger one exactly when turns take longer
than promised (L / rate > turn objective): clients that wait for answers send fewer requests the slower they are served,
so a rate alone would take a pool's slowness for a lack of demand.  It cannot run away: with replicas to spare it falls
back to the rate.  Refused requests count at most as much as all others, because who tries again is counted each time.

T is the shortest window from 15 s to 2 min with 200 arrivals: busy pools are known well within seconds, and quiet ones
are not judged by a handful of requests (a Poisson count of 200 is within 7 % of its mean two times in three).

The demand in force stands above the estimate that it was set from, by HEADROOM and by what chance does to a count of
so few arrivals (1 / sqrt of them).  It rises at once when the estimate passes it.  It falls to the greatest estimate of
a whole stabilisation window, once that is lower by more than a dead band, chance included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from berth_operator.api import Effective, InferencePool
from berth_operator.api.inference_pool import DemandStatus

WINDOW_SECONDS: Final = (15.0, 120.0)
ENOUGH_ARRIVALS: Final = 200.0
HEADROOM: Final = 1.1
DEAD_BAND: Final = 0.2
"""Share that demand in force must be above what it would be set to, before it falls."""
LEAST: Final = 0.1
"""Requests per second that observed demand falls to at most: below it chance rules, and one replica is enough."""
SURE_SECONDS: Final = 60.0
"""A pool is not put to sleep by an operator that has watched it for less, or for half its time where that is less."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a pool's workers did between two rounds of reading them."""

    at: float
    """Seconds, by a clock that never goes back."""
    seconds: float
    """Since the round before."""
    arrivals: float
    in_flight: float
    whole: bool
    """Every worker that may get traffic was read: what was not seen was not there."""
    refused: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a pool's traffic now."""

    requests_per_second: float | None = None
    """The estimate; a lower bound where not every worker could be read.  None: nothing was read."""
    peak_requests_per_second: float | None = None
    """Greatest estimate of the stabilisation window; None until that was seen whole."""
    quiet_seconds: float | None = None
    """No request came and none was in flight for so long; None: there is traffic, or it is not known."""
    busy: bool = False
    """There was traffic just now."""
    knocking: bool = False
    """Requests wait for a pool that has no worker."""


@dataclass(slots=True)
class History:
    """A pool's recent samples: at most a few hundred numbers."""

    stabilisation_s: float
    samples: deque[Sample] = field(default_factory=deque)
    estimates: deque[tuple[float, float]] = field(default_factory=deque)
    """(time, estimate) of the stabilisation window; falling, so that the first is its greatest."""
    whole_since: float | None = None
    quiet_since: float | None = None

    def add(self, sample: Sample, think_s: float, turn_s: float) -> None:
        """Take one more round into account.  `think_s`, `turn_s`: of the pool, seconds."""
        self.samples.append(sample)
        while self.samples[0].at <= sample.at - WINDOW_SECONDS[1]:
            self.samples.popleft()
        began = sample.at - sample.seconds
        if not sample.whole:
            self.whole_since = None
        elif self.whole_since is None:
            self.whole_since = began
        if not sample.whole or sample.arrivals + sample.refused + sample.in_flight > 0:
            self.quiet_since = None
        elif self.quiet_since is None:
            self.quiet_since = began
        found = estimate(self.samples, think_s, turn_s)
        while self.estimates and self.estimates[-1][1] <= found:
            self.estimates.pop()
        self.estimates.append((sample.at, found))
        while self.estimates[0][0] <= sample.at - self.stabilisation_s:
            self.estimates.popleft()

    def knock(self, at: float) -> None:
        """A request came that no worker saw."""
        if self.quiet_since is not None:
            self.quiet_since = at

    def unsettle(self) -> None:
        """The stabilisation window and idleness begin anew."""
        self.whole_since = self.quiet_since = None

    def seen(self, now: float, *, knocking: bool = False) -> Seen:
        """What it comes to.  `now` is by the samples' clock."""
        if not self.samples:
            return Seen(knocking=knocking)
        last = self.samples[-1]
        settled = self.whole_since is not None and now - self.whole_since >= self.stabilisation_s
        return Seen(
            requests_per_second=self.estimates[-1][1],
            peak_requests_per_second=self.estimates[0][1] if settled else None,
            quiet_seconds=None if self.quiet_since is None else max(0.0, now - self.quiet_since),
            busy=last.arrivals + last.refused + last.in_flight > 0,
            knocking=knocking,
        )


def estimate(samples: Iterable[Sample], think_s: float, turn_s: float) -> float:
    """Requests per second that a pool's clients would send if served as promised; see above.

    `samples`: oldest first.  `think_s`: a session's pause between turns; `turn_s`: turn latency objective; seconds.
    """
    seconds = arrivals = refused = in_flight = 0.0
    for sample in reversed(list(samples)):
        seconds += sample.seconds
        arrivals += sample.arrivals
        refused += sample.refused
        in_flight += sample.in_flight * sample.seconds
        if seconds >= WINDOW_SECONDS[1] or (seconds >= WINDOW_SECONDS[0] and arrivals >= ENOUGH_ARRIVALS):
            break
    if seconds <= 0:
        return 0.0
    lasted = max(seconds, WINDOW_SECONDS[0])  # before there is a whole window, a first request is no rate
    rate = (arrivals + min(refused, arrivals)) / lasted
    sessions = in_flight / seconds + rate * think_s
    return max(rate, sessions / max(think_s + turn_s, 1e-3))


def follows_demand(pool: InferencePool) -> bool:
    """Whether a pool's own traffic decides anything: how much is planned for, or whether it sleeps."""
    scaling = pool.spec.scaling
    return scaling is not None and (scaling.mode == "Observed" or scaling.scale_to_zero_after is not None)


def decide(
    pool: InferencePool, effective: Effective, seen: Seen, now: datetime, *, can_wake: bool = True
) -> DemandStatus | None:
    """The demand to plan for from now on; None where the spec's counts as it stands.

    `effective`: of the spec as declared.  `can_wake`: something would notice a request to a pool without workers;
    without it no pool sleeps.  The demand in force itself (the same object) is returned where nothing is to change.
    """
    scaling = pool.spec.scaling
    if scaling is None or not follows_demand(pool):
        return None
    observed, after = scaling.mode == "Observed", scaling.scale_to_zero_after
    declared = rounded(float(effective.requests_per_second))
    first = DemandStatus(requests_per_second=declared, source="Declared", declared_requests_per_second=declared)
    before = pool.status.demand
    if before is None or before.declared_requests_per_second != declared:
        return first
    if effective.suspend:
        return before
    demand = _idleness(before, seen, after if can_wake else None, now)
    slept, sleeps = before.asleep_since is not None, demand.asleep_since is not None
    if slept != sleeps:  # what is known of its traffic will be old, or is
        return _with(first, idle_since=demand.idle_since, asleep_since=demand.asleep_since)
    if sleeps:
        return demand
    return _followed(demand, seen) if observed else _declared(demand, first)


def _idleness(before: DemandStatus, seen: Seen, after: timedelta | None, now: datetime) -> DemandStatus:
    """Awake or asleep, and since when nobody has asked."""
    if after is None or seen.knocking or seen.busy:
        return _with(before, idle_since=None, asleep_since=None)
    if before.asleep_since is not None or seen.quiet_seconds is None:
        return before
    seconds = after.total_seconds()
    began = now - timedelta(seconds=seen.quiet_seconds)
    if before.idle_since is not None:
        began = min(began, _time(before.idle_since))
    idle = (now - began).total_seconds()
    if idle >= seconds and seen.quiet_seconds >= min(SURE_SECONDS, seconds / 2):
        return _with(before, idle_since=_timestamp(began), asleep_since=_timestamp(now))
    if idle >= seconds / 2 and before.idle_since is None:
        return _with(before, idle_since=_timestamp(began))
    return before


def _followed(demand: DemandStatus, seen: Seen) -> DemandStatus:
    now = float(demand.requests_per_second)
    up, peak = seen.requests_per_second, seen.peak_requests_per_second
    if up is not None and up > now:
        return _with(demand, requests_per_second=rounded(_above(up)), source="Observed")
    if peak is not None:
        target = max(_above(peak), LEAST)
        if target < now * (1 - DEAD_BAND - _chance(now)):
            return _with(demand, requests_per_second=rounded(target), source="Observed")
    return demand


def _above(rate: float) -> float:
    return rate * (HEADROOM + _chance(rate))


def _chance(rate: float) -> float:
    """Relative standard deviation of what is counted at a rate; at most a half."""
    shortest, longest = WINDOW_SECONDS
    arrivals = max(rate * shortest, min(ENOUGH_ARRIVALS, rate * longest))
    return float(min(0.5, max(arrivals, 1e-9) ** -0.5))


def _declared(demand: DemandStatus, first: DemandStatus) -> DemandStatus:
    return _with(demand, requests_per_second=first.requests_per_second, source="Declared")


def in_force(pool: InferencePool, demand: DemandStatus | None) -> InferencePool:
    """The pool as it is to be planned: the demand in force in place of the declared one, suspended while asleep."""
    if demand is None or not follows_demand(pool):
        return pool
    spec = pool.spec
    if demand.source == "Observed":
        update = {"requests_per_second": demand.requests_per_second, "concurrent_sessions": None}
        workload = spec.workload.model_copy(update={"demand": spec.workload.demand.model_copy(update=update)})
        spec = spec.model_copy(update={"workload": workload})
    if demand.asleep_since is not None:
        spec = spec.model_copy(update={"suspend": True})
    return pool.model_copy(update={"spec": spec})


def rounded(requests_per_second: float) -> Decimal:
    """Three digits, never zero: a demand as status shows it."""
    return Decimal(format(Decimal(f"{max(requests_per_second, 1e-6):.3g}"), "f"))


def _with(demand: DemandStatus, **fields: object) -> DemandStatus:
    changed = demand.model_copy(update=fields)
    return demand if changed == demand else changed


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _timestamp(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
