"""Does status say what is so, and stay quiet when nothing has changed?"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, InferencePoolStatus, resolve
from berth_operator.api.inference_pool import DemandStatus
from berth_operator.catalog.sanity import Fault
from berth_operator.class_status import hardware_class_status, nodes_in_use
from berth_operator.load.facts import NO_LOAD, LoadFacts
from berth_operator.planner import Placement, Plan, PoolPlan, Problem, RunningPlacement, Stay
from berth_operator.status import Trouble, pool_status, rejected_status, savings_percent
from hypothesis import given
from hypothesis import strategies as st

MakePool = Callable[..., InferencePool]
MakePlan = Callable[..., PoolPlan]


def _running(ready: int, hardware_class: str = "graviton4-4xl") -> RunningPlacement:
    return RunningPlacement("default/agents", hardware_class, CapacityType.ON_DEMAND, 2, ready)


def _conditions(status: InferencePoolStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions or ()}


def _with(pool: InferencePool, status: InferencePoolStatus) -> InferencePool:
    return pool.model_copy(update={"status": status})


def test_a_served_pool_is_ready_and_shows_dollars(make_pool: MakePool, make_plan: MakePlan, now: datetime) -> None:
    pool = make_pool()
    status = pool_status(pool, make_plan(pool), [_running(2)], now)
    conditions = _conditions(status)
    assert conditions["Ready"] == ("True", "Ready")
    assert conditions["Progressing"] == ("False", "Complete")
    assert (status.ready, status.placement, status.saved) == ("2/2", "2x graviton4-4xl/OnDemand", "60%")
    assert status.cost and status.cost.to_api() == {
        "usdPerHour": "1.276",
        "usdPerMillionTokens": "0.510",
        "gpuOnlyUsdPerHour": "3.220",
        "savingsPercent": 60,
    }
    assert status.observed_generation == 3


@pytest.mark.parametrize(
    ("changes", "ready", "expected"),
    [
        ({}, 0, ("False", "Starting")),
        ({}, 1, ("False", "Degraded")),
        ({"not_accepted": Problem("UnknownModel", "m"), "placements": ()}, 0, ("False", "NotAccepted")),
        ({"shortfall": Problem("NoCapacity", "m"), "placements": ()}, 0, ("False", "NoCapacity")),
        ({"shortfall": Problem("Budget", "m"), "unserved_requests_per_second": 1.0}, 2, ("False", "DemandUnserved")),
        ({"over_budget": Problem("OverBudget", "m")}, 2, ("True", "OverBudget")),
    ],
)
def test_ready_sums_up_the_other_conditions(
    make_pool: MakePool, make_plan: MakePlan, now: datetime, changes: dict, ready: int, expected: tuple[str, str]
) -> None:
    pool = make_pool()
    status = pool_status(pool, make_plan(pool, **changes), [_running(ready)], now)
    assert _conditions(status)["Ready"] == expected


def test_a_pool_that_waiting_does_not_help_is_not_said_to_start(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    pool, stuck = make_pool(), Trouble("ImagePullFailed", "no such image", stuck=True)
    conditions = _conditions(pool_status(pool, make_plan(pool), [], now, trouble=stuck))
    assert conditions["Ready"] == conditions["Progressing"] == ("False", "ImagePullFailed")
    waits = Trouble("WaitingForNode", "pods wait for a node", stuck=False)
    assert _conditions(pool_status(pool, make_plan(pool), [], now, trouble=waits))["Ready"] == ("False", "Starting")


@pytest.mark.parametrize(
    ("reason", "spec", "expected"),
    [
        ("NoCapacity", {}, ("False", "Kept")),
        ("Budget", {}, ("True", "Moving")),
        ("NoCapacity", {"suspend": True}, ("True", "Moving")),
    ],
)
def test_workers_that_stay_for_want_of_others_are_not_said_to_leave(
    make_pool: MakePool, make_plan: MakePlan, now: datetime, reason: str, spec: dict, expected: tuple[str, str]
) -> None:
    pool = make_pool(**spec)
    plan = make_plan(pool, placements=(), shortfall=Problem(reason, "m"))
    assert _conditions(pool_status(pool, plan, [_running(1)], now))["Progressing"] == expected


DEMAND = {"requestsPerSecond": "7", "source": "Observed", "declaredRequestsPerSecond": "4"}


def test_a_pool_that_no_client_can_reach_is_not_ready(make_pool: MakePool, make_plan: MakePlan, now: datetime) -> None:
    pool, taken = make_pool(), Trouble("NameTaken", "Service agents: not ours", stuck=True, unreachable=True)
    status = pool_status(pool, make_plan(pool), [_running(2)], now, trouble=taken)
    assert _conditions(status)["Ready"] == _conditions(status)["Progressing"] == ("False", "NameTaken")
    assert _conditions(status)["Available"] == ("True", "Serving")
    assert [decision.reason for decision in status.history or ()] == ["Placed"]  # no rollout has failed


def test_no_request_wakes_a_sleeping_pool_that_none_can_reach(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    pool, taken = make_pool(suspend=True), Trouble("NameTaken", "m", stuck=True, unreachable=True)
    asleep = LoadFacts(DemandStatus.model_validate(DEMAND | {"asleepSince": "2026-11-21T11:00:00Z"}))

    def ready(trouble: Trouble | None) -> tuple[str, str]:
        status = pool_status(pool, make_plan(pool, placements=()), [], now, load=asleep, trouble=trouble)
        return _conditions(status)["Ready"]

    assert (ready(None), ready(taken)) == (("True", "Asleep"), ("False", "NameTaken"))


REFUSED = {"not_accepted": Problem("UnknownHardware", "no such class"), "usd_per_hour": Decimal(0)}
NOTHING = {"shortfall": Problem("NoCapacity", "m"), "usd_per_hour": Decimal(0)}


def _was(hardware_class: str = "doomed") -> dict[str, Any]:
    placed = {"hardwareClass": hardware_class, "capacityType": "OnDemand", "replicas": 4, "usdPerHour": "2.552"}
    return {"placements": [placed | {"trafficPercent": 100}], "lastMoveTime": "2026-11-20T12:00:00Z"}


@pytest.mark.parametrize("changes", [REFUSED, NOTHING])
def test_workers_that_a_pool_keeps_without_a_place_are_shown_and_paid(
    make_pool: MakePool, make_plan: MakePlan, now: datetime, changes: dict
) -> None:
    pool = make_pool(status=_was())
    status = pool_status(pool, make_plan(pool, placements=(), **changes), [_running(1, "doomed")], now)
    assert (status.ready, status.placement) == ("1/2", "2x doomed/OnDemand (kept)")
    assert [p.to_api() for p in status.placements or ()] == [
        _was()["placements"][0] | {"replicas": 2, "readyReplicas": 1, "usdPerHour": "1.276"}
    ]
    assert status.cost and (status.cost.usd_per_hour, status.saved) == ("1.276", None)
    assert status.last_move_time == "2026-11-20T12:00:00Z"
    after = pool_status(_with(pool, status), make_plan(pool, placements=(), **changes), [_running(1, "doomed")], now)
    assert after is status or after.to_api() == status.to_api()


def test_what_a_pool_keeps_and_never_told_the_price_of_costs_what_its_nodes_do_now(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    stays = [Stay("default/agents", "doomed", CapacityType.ON_DEMAND, 2, 2, 1, None, Decimal("1.9"))]

    def told(status: dict[str, Any], stays: list[Stay]) -> str | None:
        pool = make_pool(status=status)
        plan = make_plan(pool, placements=(), **REFUSED)
        cost = pool_status(pool, plan, [_running(2, "doomed")], now, stays=stays).cost
        return cost and cost.usd_per_hour

    assert (told({}, stays), told(_was(), stays), told({}, [])) == ("1.900", "1.276", "0.000")


def test_a_refused_pool_keeps_its_workers_asleep_and_not_suspended(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    asleep = LoadFacts(DemandStatus.model_validate(DEMAND | {"asleepSince": "2026-11-21T11:00:00Z"}))

    def keeps(load: LoadFacts = NO_LOAD, **spec: Any) -> bool:
        pool = make_pool(status=_was(), suspend=True, **spec)
        plan = make_plan(pool, placements=(), **REFUSED)
        return bool(pool_status(pool, plan, [_running(1, "doomed")], now, load=load).placements)

    recommended = {"placement": {"mode": "Recommend"}}  # where nothing is changed
    assert (keeps(), keeps(asleep), keeps(**recommended)) == (False, True, True)


def test_what_a_pool_keeps_may_break_its_budget_and_says_so(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    pool = make_pool(status=_was(), budget={"maxUsdPerHour": "1.00"})
    plan = make_plan(pool, placements=(), **REFUSED)
    found = {n: _conditions(pool_status(pool, plan, [_running(n, "doomed")] * n, now)) for n in (0, 1)}
    assert [found[n]["WithinBudget"] for n in (0, 1)] == [("True", "WithinBudget"), ("False", "Kept")]


def test_what_a_pool_keeps_beside_a_plan_that_is_not_enough_is_paid_and_takes_no_planned_traffic(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    pool, short = make_pool(status=_was()), Problem("NoCapacity", "m")
    running = [_running(2), _running(2, "doomed")]

    def shown(**changes: Any) -> tuple[Any, ...]:
        status = pool_status(pool, make_plan(pool, **changes), running, now)
        traffic = [(p.hardware_class, p.traffic_percent) for p in status.placements or ()]
        return status.cost and status.cost.usd_per_hour, traffic, _conditions(status)["Progressing"][1]

    both = [("graviton4-4xl", 100), ("doomed", 0)]
    assert shown(shortfall=short, unserved_requests_per_second=1.0) == ("2.552", both, "Kept")
    assert shown() == ("1.276", both[:1], "Moving")
    assert shown(shortfall=Problem("Budget", "m"), unserved_requests_per_second=1.0)[:2] == ("1.276", both[:1])


def test_traffic_of_what_is_kept_adds_up(make_pool: MakePool, make_plan: MakePlan, now: datetime) -> None:
    pool = make_pool()
    running = [_running(1, name) for name in "abc"]
    status = pool_status(pool, make_plan(pool, placements=(), **REFUSED), running, now)
    assert [p.traffic_percent for p in status.placements or ()] == [33, 33, 34]


def test_a_pool_that_does_not_parse_still_shows_what_it_runs_and_forgets_no_demand(
    make_pool: MakePool, now: datetime
) -> None:
    before = make_pool(status=_was() | {"demand": DEMAND}).status
    status = rejected_status(before, 4, "spec: wrong", now, [_running(2, "doomed")])
    assert (status["ready"], status["cost"]) == ("2/2", {"usdPerHour": "1.276"})
    assert status["demand"] == DEMAND
    assert status["lastMoveTime"] == "2026-11-20T12:00:00Z"


def test_a_pool_for_which_nothing_can_be_had_is_not_said_to_want_nothing(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    def says(**spec: Any) -> str:
        pool = make_pool(**spec)
        status = pool_status(pool, make_plan(pool, placements=()), [], now)
        return next(c.message for c in status.conditions or () if c.type == "Available")

    assert says() == "no replica is placed: see Placed"
    assert says(suspend=True) == "no replica is wanted"


def test_a_suspended_pool_says_what_resuming_costs(make_pool: MakePool, make_plan: MakePlan, now: datetime) -> None:
    pool = make_pool(suspend=True)
    plan = make_plan(pool, placements=(), resume_usd_per_hour=Decimal("0.638"))
    (placed,) = [c for c in pool_status(pool, plan, [], now).conditions or () if c.type == "Placed"]
    assert (placed.status, placed.reason) == ("False", "Suspended")
    assert "resuming costs 0.638 USD/h" in placed.message


def test_the_same_facts_give_the_very_status_in_force(
    make_pool: MakePool, make_plan: MakePlan, now: datetime, later: datetime
) -> None:
    pool = make_pool()
    pool = _with(pool, pool_status(pool, make_plan(pool), [_running(2)], now))
    assert pool_status(pool, make_plan(pool), [_running(2)], later) is pool.status


@given(jitter=st.decimals(min_value="0.985", max_value="1.015", places=4))
def test_jitter_of_prices_and_predictions_writes_nothing(jitter: Decimal) -> None:
    # function-scoped fixtures and hypothesis do not mix: build the objects here
    pool = InferencePool.model_validate(
        {
            "metadata": {"name": "agents", "namespace": "default"},
            "spec": {
                "model": {"name": "smollm2-135m-instruct"},
                "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "4"}},
            },
        }
    )
    now = datetime.fromisoformat("2026-11-21T12:00:00+00:00")
    plan = PoolPlan(
        pool.key,
        resolve(pool.spec),
        usd_per_hour=Decimal("10.00"),
        gpu_only_usd_per_hour=Decimal("20.00"),
        usd_per_million_tokens=Decimal("1.00"),
    )
    pool = _with(pool, pool_status(pool, plan, [], now))
    moved = replace(plan, usd_per_hour=plan.usd_per_hour * jitter)
    assert pool_status(pool, moved, [], now) is pool.status


def test_a_real_change_is_never_hidden_by_the_dead_band(
    make_pool: MakePool, make_plan: MakePlan, make_placement: Callable[..., Placement], now: datetime
) -> None:
    pool = make_pool()
    old = pool_status(pool, make_plan(pool), [_running(2)], now)
    pool = _with(pool, old)
    changes = [
        make_plan(pool, usd_per_hour=Decimal("1.4")),
        make_plan(pool, placements=(make_placement(replicas=3),)),
        make_plan(pool, kept=Problem("Kept", "cooldown")),
    ]
    for plan in changes:
        assert pool_status(pool, plan, [_running(2)], now) is not old
    assert pool_status(pool, make_plan(pool), [_running(1)], now) is not old


def test_status_carries_what_the_scale_subresource_shows(
    make_pool: MakePool, make_plan: MakePlan, now: datetime
) -> None:
    rate, sessions = make_pool(), make_pool(workload={"class": "Agentic", "demand": {"concurrentSessions": 40}})
    shown = [pool_status(pool, make_plan(pool), [], now) for pool in (rate, sessions)]
    assert [status.concurrent_sessions for status in shown] == [None, 40]
    assert {status.selector for status in shown} == {"app.kubernetes.io/managed-by=berth,berth.dev/pool=agents"}


def test_transition_times_change_only_with_the_condition(
    make_pool: MakePool, make_plan: MakePlan, now: datetime, later: datetime
) -> None:
    pool = make_pool()
    pool = _with(pool, pool_status(pool, make_plan(pool), [_running(0)], now))
    status = pool_status(pool, make_plan(pool), [_running(2)], later)
    since = {c.type: c.last_transition_time for c in status.conditions or ()}
    assert since["Ready"] == "2026-11-21T12:05:00Z"
    assert since["Accepted"] == "2026-11-21T12:00:00Z"


def test_a_move_to_other_hardware_starts_the_cooldown_and_scaling_does_not(
    make_pool: MakePool, make_plan: MakePlan, make_placement: Callable[..., Placement], now: datetime, later: datetime
) -> None:
    pool = make_pool()
    first = pool_status(pool, make_plan(pool), [], now)
    assert first.last_move_time is None
    pool = _with(pool, first)
    scaled = pool_status(pool, make_plan(pool, placements=(make_placement(replicas=5),)), [], later)
    assert scaled.last_move_time is None
    moved = pool_status(pool, make_plan(pool, placements=(make_placement(hardware_class="l4"),)), [], later)
    assert moved.last_move_time == "2026-11-21T12:05:00Z"


@pytest.mark.parametrize(
    ("cost", "other", "percent"),
    [("1.276", "3.220", 60), ("1", "1", 0), ("2.98", "3", 0), ("0", "3", 100), ("1.01", "1", -1), ("1.015", "1", -2)],
)
def test_savings_are_rounded_down(
    make_pool: MakePool, make_plan: MakePlan, cost: str, other: str, percent: int
) -> None:
    plan = make_plan(make_pool(), usd_per_hour=Decimal(cost), gpu_only_usd_per_hour=Decimal(other))
    assert savings_percent(plan) == percent


def test_no_savings_are_claimed_where_there_is_nothing_to_compare(make_pool: MakePool, make_plan: MakePlan) -> None:
    assert savings_percent(make_plan(make_pool(), gpu_only_usd_per_hour=None)) is None
    assert savings_percent(make_plan(make_pool(), unserved_requests_per_second=0.5)) is None


def test_a_class_shows_nodes_in_use_and_prices(
    make_pool: MakePool, make_plan: MakePlan, make_class: Callable[..., HardwareClass], now: datetime
) -> None:
    pool, hardware = make_pool(), make_class()
    status = hardware_class_status(hardware, nodes_in_use(Plan({pool.key: make_plan(pool)}, 0.0, "Optimal")), now)
    assert status.nodes_in_use == 2
    assert [(p.type.value, p.usd_per_hour) for p in status.prices or ()] == [("OnDemand", "0.638"), ("Spot", "0.255")]


def test_a_class_that_no_plan_uses_or_no_node_matches_is_not_said_to_be_available(
    make_class: Callable[..., HardwareClass], now: datetime
) -> None:
    def says(*reasons: str) -> tuple[str, str]:
        faults = [Fault("HardwareClass", "g", "g", reason, "f", "m") for reason in reasons]
        status = hardware_class_status(make_class(), {}, now, faults=faults)
        return next((c.status, c.reason) for c in status.conditions or () if c.type == "Available")

    assert says() == ("True", "Available")
    assert says("NoNodeMatches") == ("Unknown", "NoNodeMatches")
    assert says("NoNodeMatches", "NameTooLong") == ("False", "NameTooLong")
