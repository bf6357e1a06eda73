"""Does planned demand follow traffic: fast up, slow down, asleep when idle, and still when nothing changes?"""

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from berth_operator.api import InferencePool, resolve
from berth_operator.api.inference_pool import DemandStatus
from berth_operator.load.demand import DEAD_BAND, HEADROOM, History, Sample, Seen, decide, estimate, in_force
from hypothesis import given
from hypothesis import strategies as st

MakePool = Callable[..., InferencePool]
THINK, TURN = 2.0, 10.0
STABILISATION = 300.0
EVERY = 5.0
BEGAN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Clients:
    """A pool in scaling.mode Observed and what its workers report, round after round."""

    def __init__(self, pool: InferencePool) -> None:
        self.pool = pool
        self.history = History(STABILISATION)
        self.at = 0.0
        self.changes: list[DemandStatus | None] = []

    def round(self, arrivals: float, in_flight: float | None = None, **sample: Any) -> None:
        """Five seconds with so many arrivals, and a decision after them."""
        self.at += EVERY
        flying = arrivals / EVERY * 3.0 if in_flight is None else in_flight
        self.history.add(Sample(self.at, EVERY, arrivals, flying, **({"whole": True} | sample)), THINK, TURN)
        self.decide()

    def decide(self, **seen: Any) -> None:
        now = BEGAN + timedelta(seconds=self.at)
        before = self.pool.status.demand
        after = decide(self.pool, resolve(self.pool.spec), self.history.seen(self.at, **seen), now)
        if after != before:
            self.changes.append(after)
            self.pool = with_demand(self.pool, after)

    def rounds(self, arrivals: Iterable[float]) -> None:
        for count in arrivals:
            self.round(count)

    @property
    def demand(self) -> float:
        assert self.pool.status.demand
        return float(self.pool.status.demand.requests_per_second)


def with_demand(pool: InferencePool, demand: DemandStatus | None) -> InferencePool:
    return pool.model_copy(update={"status": pool.status.model_copy(update={"demand": demand})})


@pytest.fixture
def observed(make_pool: MakePool) -> Clients:
    return Clients(make_pool(scaling={"mode": "Observed"}))


def poisson(rate: float, rounds: int, seed: int) -> list[float]:
    """Arrivals of rounds at a rate, requests per second."""
    source = random.Random(seed)  # noqa: S311 - for a test
    out = []
    for _ in range(rounds):
        count, passed = 0, source.expovariate(rate)
        while passed < EVERY:
            count, passed = count + 1, passed + source.expovariate(rate)
        out.append(float(count))
    return out


# --- Estimate -------------------------------------------------------------------------------------------------------


def samples(*rounds: tuple[float, float], **more: float) -> list[Sample]:
    return [Sample(EVERY * (i + 1), EVERY, a, flying, whole=True, **more) for i, (a, flying) in enumerate(rounds)]


def test_an_unhurried_pool_is_estimated_at_its_rate() -> None:
    assert estimate(samples(*[(20, 8)] * 30), THINK, TURN) == pytest.approx(4.0)


def test_slow_answers_are_not_taken_for_a_lack_of_demand() -> None:
    """120 sessions that wait 58 s for each turn send 2 a second; served as promised, they would send 10."""
    assert estimate(samples(*[(10, 116)] * 30), THINK, TURN) == pytest.approx(120 / (THINK + TURN))


def test_refused_requests_count_but_retries_cannot_run_away() -> None:
    assert estimate(samples(*[(20, 8)] * 30, refused=10), THINK, TURN) == pytest.approx(6.0)
    assert estimate(samples(*[(20, 8)] * 30, refused=10_000), THINK, TURN) == pytest.approx(8.0)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e5)), min_size=1, max_size=30))
def test_an_estimate_is_a_rate_that_could_have_been(rounds: list[tuple[float, float]]) -> None:
    found = estimate(samples(*rounds), THINK, TURN)
    most = max(a for a, _ in rounds) / EVERY
    assert 0 <= found <= most + (max(flying for _, flying in rounds) + most * THINK) / (THINK + TURN) + 1e-9


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=24), st.integers(0, 23), st.floats(1, 1000))
def test_more_requests_in_flight_never_lower_the_estimate(flying: list[float], where: int, more: float) -> None:
    where %= len(flying)
    fewer = samples(*((10, f) for f in flying))
    greater = samples(*((10, f + more * (i == where)) for i, f in enumerate(flying)))
    assert estimate(greater, THINK, TURN) >= estimate(fewer, THINK, TURN)


# --- Up, down, still ------------------------------------------------------------------------------------------------


def test_the_declared_demand_is_the_first_guess(observed: Clients) -> None:
    observed.decide()
    assert (observed.demand, observed.pool.status.demand and observed.pool.status.demand.source) == (4.0, "Declared")


def test_demand_rises_within_half_a_minute(observed: Clients) -> None:
    observed.rounds([20] * 60)
    observed.rounds([80] * 6)
    assert observed.demand >= 16


def test_demand_falls_only_after_a_whole_stabilisation_window(observed: Clients) -> None:
    observed.rounds([200] * 60)
    high = observed.demand
    observed.rounds([20] * 59)
    assert observed.demand == high
    observed.rounds([20] * 30)
    assert observed.demand == pytest.approx(4 * HEADROOM, rel=0.1)


def test_what_was_not_seen_whole_cannot_lower_demand_and_can_raise_it(observed: Clients) -> None:
    observed.rounds([200] * 60)
    high = observed.demand
    for _ in range(200):
        observed.round(0, whole=False)
    assert observed.demand == high
    for _ in range(6):
        observed.round(1000, whole=False)
    assert observed.demand > high


def test_an_operator_that_has_just_started_lowers_nothing_at_first(observed: Clients) -> None:
    observed.rounds([200] * 60)
    restarted = Clients(observed.pool)
    restarted.rounds([20] * 55)
    assert restarted.changes == []


@pytest.mark.parametrize("rate", [0.05, 0.5, 4.0, 40.0])
def test_steady_traffic_soon_changes_nothing(make_pool: MakePool, rate: float) -> None:
    """Random arrivals at one rate, over two hours after half an hour to settle."""
    changes = []
    for seed in range(5):
        clients = Clients(make_pool(scaling={"mode": "Observed"}))
        clients.rounds(poisson(rate, 360, seed))
        clients.changes.clear()
        clients.rounds(poisson(rate, 1440, seed + 100))
        changes.append(len(clients.changes))
        assert rate <= clients.demand <= (1.6 if rate > 1 else 2.5) * rate + 0.1
    assert sum(changes) <= 5, "more than one write in two hours"


def test_an_edited_declaration_is_a_new_first_guess(observed: Clients, make_pool: MakePool) -> None:
    observed.rounds([200] * 60)
    edited = make_pool(
        scaling={"mode": "Observed"}, workload={"class": "Agentic", "demand": {"requestsPerSecond": "90"}}
    )
    observed.pool = with_demand(edited, observed.pool.status.demand)
    observed.history.unsettle()
    observed.rounds([200] * 50)
    assert observed.demand == 90
    observed.rounds([200] * 20)
    assert observed.demand < 60


def test_a_declared_demand_stands_whatever_is_seen(make_pool: MakePool) -> None:
    busy = Seen(requests_per_second=1e6, busy=True)
    assert decide(make_pool(), resolve(make_pool().spec), busy, BEGAN) is None


rates = st.none() | st.floats(0, 1e6)


@given(st.floats(0.001, 1e5), rates, rates, st.none() | st.floats(0, 1e5), st.booleans(), st.booleans())
def test_deciding_again_on_the_same_facts_changes_nothing(
    declared: float, now: float | None, peak: float | None, quiet: float | None, busy: bool, knocking: bool
) -> None:
    body = {
        "metadata": {"name": "agents", "namespace": "default"},
        "spec": {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {"class": "Agentic", "demand": {"requestsPerSecond": f"{declared:.3f}"}},
            "scaling": {"mode": "Observed", "scaleToZeroAfter": "30m"},
        },
    }
    pool = InferencePool.model_validate(body)
    if peak is not None and now is not None:
        peak = max(peak, now)
    seen = Seen(now, peak, None if busy else quiet, busy, knocking)
    for _ in range(3):
        pool = with_demand(pool, decide(pool, resolve(pool.spec), seen, BEGAN))
    settled = pool.status.demand
    assert settled is not None
    assert decide(pool, resolve(pool.spec), seen, BEGAN) is settled
    if settled.asleep_since is None and now is not None and not knocking:
        assert float(settled.requests_per_second) >= now * 0.99
    DemandStatus.model_validate(settled.to_api(), extra="forbid")  # what the API server takes


# --- To zero and back -----------------------------------------------------------------------------------------------

SLEEPY = {"scaleToZeroAfter": "30m"}
AFTER = 1800.0


def test_a_pool_sleeps_after_its_time_without_requests_and_not_before(make_pool: MakePool) -> None:
    clients = Clients(make_pool(scaling=SLEEPY))
    clients.rounds([20] * 10)
    clients.rounds([0] * int(AFTER / EVERY - 1))
    assert clients.pool.status.demand and clients.pool.status.demand.asleep_since is None
    clients.rounds([0] * 2)
    assert clients.pool.status.demand.asleep_since is not None
    assert in_force(clients.pool, clients.pool.status.demand).spec.suspend is True
    # The first guess, when idleness became noteworthy, and when it fell asleep.
    assert len(clients.changes) == 3


@pytest.mark.parametrize("sample", [{"arrivals": 1, "in_flight": 0}, {"arrivals": 0, "in_flight": 1}])
def test_a_request_or_one_that_is_not_done_keeps_it_awake(make_pool: MakePool, sample: dict[str, float]) -> None:
    clients = Clients(make_pool(scaling=SLEEPY))
    for _ in range(3):
        clients.rounds([0] * int(AFTER / EVERY - 10))
        clients.round(**sample)
    clients.rounds([0] * 10)
    assert clients.pool.status.demand and clients.pool.status.demand.asleep_since is None


def test_a_pool_whose_workers_cannot_be_read_does_not_sleep(make_pool: MakePool) -> None:
    clients = Clients(make_pool(scaling=SLEEPY))
    for _ in range(int(2 * AFTER / EVERY)):
        clients.round(0, 0, whole=False)
    assert clients.pool.status.demand and clients.pool.status.demand.asleep_since is None


def test_idleness_outlives_a_restart(make_pool: MakePool) -> None:
    clients = Clients(make_pool(scaling=SLEEPY))
    clients.rounds([0] * int(AFTER / EVERY * 0.7))
    restarted = Clients(clients.pool)
    restarted.at = clients.at
    restarted.rounds([0] * int(AFTER / EVERY * 0.35))
    assert restarted.pool.status.demand and restarted.pool.status.demand.asleep_since is not None


def test_a_knock_wakes_it_with_the_declared_demand(make_pool: MakePool) -> None:
    clients = Clients(make_pool(scaling=SLEEPY | {"mode": "Observed"}))
    clients.rounds([0] * int(AFTER / EVERY + 1))
    demand = clients.pool.status.demand
    assert demand and demand.asleep_since
    clients.history = History(STABILISATION)  # no worker, nothing to observe
    clients.decide()
    assert clients.pool.status.demand is demand
    clients.decide(knocking=True)
    assert clients.pool.status.demand.asleep_since is None
    assert clients.demand == 4.0


def test_without_anything_to_wake_it_no_pool_sleeps(make_pool: MakePool) -> None:
    pool = make_pool(scaling=SLEEPY)
    seen = Seen(0.0, 0.0, quiet_seconds=10 * AFTER)
    found = decide(pool, resolve(pool.spec), seen, BEGAN, can_wake=False)
    assert found and found.asleep_since is None and found.idle_since is None


def test_the_observed_demand_is_what_is_planned(make_pool: MakePool) -> None:
    pool = make_pool(
        scaling={"mode": "Observed"},
        workload={"class": "Agentic", "demand": {"concurrentSessions": 10, "thinkTime": "7s"}},
    )
    demand = DemandStatus(requests_per_second="12.5", source="Observed", declared_requests_per_second="4")
    planned = resolve(in_force(pool, demand).spec)
    assert (float(planned.requests_per_second), planned.concurrent_sessions) == (12.5, None)
    assert planned.think_time == timedelta(seconds=7)
    assert in_force(make_pool(), demand).spec == make_pool().spec
    assert DEAD_BAND < 1
