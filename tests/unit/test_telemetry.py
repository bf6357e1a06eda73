"""Do the metrics say what is so, spend only what is paid for, and forget what is gone?"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

import pytest
from berth_operator.api import CapacityType, Condition, HardwareClass, InferencePool, InferencePoolStatus
from berth_operator.cluster.observe import Worker
from berth_operator.planner import Placement, Plan, PoolPlan, Snapshot, Stay
from berth_operator.telemetry import COUNTERS, GAUGES, Readings, Telemetry, readings
from prometheus_client import CollectorRegistry, generate_latest

MakePool = Callable[..., InferencePool]
MakePlan = Callable[..., PoolPlan]
MakePlacement = Callable[..., Placement]
MakeClass = Callable[..., HardwareClass]

SPENT, GPU_ONLY = "berth_pool_spent_usd", "berth_pool_gpu_only_usd"
AGENTS = ("default", "agents")


def _worker(
    node: str | None = "node-0", *, pool: str = "default/agents", ready: bool = True, **changes: object
) -> Worker:
    base = Worker(
        pool=pool,
        hardware_class="graviton4-4xl",
        capacity_type=CapacityType.ON_DEMAND,
        node=node,
        ready=ready,
        unschedulable=False,
        deleting=False,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def telemetry(registry: CollectorRegistry, clock: Clock) -> Telemetry:
    return Telemetry(registry, clock)


@pytest.fixture
def read(make_pool: MakePool, make_plan: MakePlan, make_class: MakeClass, now: datetime) -> Callable[..., Readings]:
    def make(*workers: Worker, statuses: dict[str, InferencePoolStatus] | None = None, **plan: object) -> Readings:
        pool = make_pool()
        snapshot = Snapshot(now=now, pools=(pool,), hardware_classes=(make_class(),))
        planned = Plan({pool.key: make_plan(pool, **plan)}, 0.0, "Optimal")
        return readings(snapshot, planned, workers, statuses or {}, observed={pool.key: 3.0})

    return make


def test_replicas_are_counted_by_state(read: Callable[..., Readings]) -> None:
    workers = [
        _worker(),
        _worker(ready=False),
        _worker(None, ready=False, unschedulable=True),
        _worker(ready=True, deleting=True),
    ]
    replicas = read(*workers).gauges["berth_pool_replicas"]
    where = (*AGENTS, "graviton4-4xl", "OnDemand")
    assert {labels[-1]: value for labels, value in replicas.items() if labels[:-1] == where} == {
        "planned": 2,
        "ready": 1,
        "starting": 1,
        "unschedulable": 1,
        "terminating": 1,
    }


def test_two_workers_on_one_node_pay_for_it_once(read: Callable[..., Readings]) -> None:
    assert read(_worker(), _worker()).usd_per_hour[SPENT][AGENTS] == pytest.approx(0.638)
    assert read(_worker("a"), _worker("b")).usd_per_hour[SPENT][AGENTS] == pytest.approx(1.276)


def test_pools_on_one_node_share_its_price(read: Callable[..., Readings]) -> None:
    shared = read(_worker(), _worker(pool="other/pool"))
    assert shared.usd_per_hour[SPENT][AGENTS] == pytest.approx(0.319)


def test_a_worker_that_is_not_ready_and_a_reserved_node_cost_nothing(read: Callable[..., Readings]) -> None:
    assert read(_worker(ready=False)).usd_per_hour[SPENT][AGENTS] == 0
    assert read(_worker(capacity_type=CapacityType.RESERVED)).usd_per_hour[SPENT][AGENTS] == 0


def test_a_pool_that_is_still_starting_has_saved_nothing(read: Callable[..., Readings]) -> None:
    rate = {n: read(*[_worker(str(i)) for i in range(n)]).usd_per_hour[GPU_ONLY][AGENTS] for n in (0, 1, 2, 5)}
    assert rate == {0: 0.0, 1: pytest.approx(1.61), 2: pytest.approx(3.22), 5: pytest.approx(3.22)}


def test_unserved_demand_saves_nothing(read: Callable[..., Readings]) -> None:
    half = read(_worker("a"), _worker("b"), served_requests_per_second=2.0, unserved_requests_per_second=2.0)
    assert half.usd_per_hour[GPU_ONLY][AGENTS] == pytest.approx(1.61)


def test_a_condition_is_one_for_its_status_and_zero_for_the_others(read: Callable[..., Readings]) -> None:
    condition = Condition(type="Ready", status="False", reason="Starting", last_transition_time="2026-11-21T12:00:00Z")
    statuses = {"default/agents": InferencePoolStatus(conditions=[condition])}
    series = read(statuses=statuses).gauges["berth_pool_condition"]
    assert series == {(*AGENTS, "Ready", s): float(s == "False") for s in ("True", "False", "Unknown")}


def test_prices_and_shortages_are_those_of_the_classes(
    make_class: MakeClass, now: datetime, make_pool: MakePool
) -> None:
    hardware = make_class()
    constrained = [
        {"type": "Spot", "since": "s", "until": "2026-11-21T12:01:00Z", "backOff": "1m"},
        {"type": "OnDemand", "since": "s", "until": "2026-11-21T12:00:00Z", "backOff": "1m"},  # tried again
    ]
    status = type(hardware.status).model_validate({"constrained": constrained})
    hardware = hardware.model_copy(update={"status": status})
    gauges = readings(Snapshot(now=now, hardware_classes=(hardware,)), Plan({}, 0.0, "Optimal"), (), {}).gauges
    assert gauges["berth_hardware_usd_per_hour"] == {
        ("graviton4-4xl", "OnDemand", "HardwareClass"): 0.638,
        ("graviton4-4xl", "Spot", "HardwareClass"): 0.255,
    }
    assert gauges["berth_hardware_constrained"] == {("graviton4-4xl", "OnDemand"): 0, ("graviton4-4xl", "Spot"): 1}


def test_spending_is_integrated_over_time_and_up_to_the_scrape(
    telemetry: Telemetry, registry: CollectorRegistry, clock: Clock
) -> None:
    def spent() -> float | None:
        return registry.get_sample_value("berth_pool_spent_usd_total", {"pool_namespace": "default", "pool": "agents"})

    assert spent() is None
    telemetry.update(Readings(usd_per_hour={SPENT: {AGENTS: 3.6}}))
    clock.now = 1000
    assert spent() == pytest.approx(1.0)
    telemetry.update(Readings(usd_per_hour={SPENT: {AGENTS: 0.0}}))
    clock.now = 9000
    assert spent() == pytest.approx(1.0)
    telemetry.update(Readings(usd_per_hour={SPENT: {AGENTS: 7.2}}))
    clock.now = 9500
    assert spent() == pytest.approx(2.0)


def test_a_pool_that_is_gone_leaves_no_series(
    telemetry: Telemetry, registry: CollectorRegistry, read: Callable[..., Readings]
) -> None:
    telemetry.update(read(_worker()))
    assert b'pool="agents"' in generate_latest(registry)
    telemetry.update(Readings())
    assert b'pool="agents"' not in generate_latest(registry)


def test_every_metric_of_the_design_is_served_with_its_labels(
    telemetry: Telemetry, registry: CollectorRegistry, read: Callable[..., Readings]
) -> None:
    condition = Condition(type="Ready", status="True", reason="Ready", last_transition_time="2026-11-21T12:00:00Z")
    statuses = {"default/agents": InferencePoolStatus(conditions=[condition])}
    telemetry.update(read(_worker(), statuses=statuses, watts=100))
    telemetry.planned(0.05, 0.01)
    telemetry.passed("success", 123.0)
    served = {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}
    pool, placement = {"pool_namespace", "pool"}, {"pool_namespace", "pool", "hardware_class", "capacity_type"}
    assert {name: labels for name, labels in served.items() if "_created" not in name} == {
        "berth_pool_replicas": placement | {"state"},
        "berth_pool_usd_per_hour": placement,
        "berth_pool_gpu_only_usd_per_hour": pool,
        "berth_pool_spent_usd_total": pool,
        "berth_pool_gpu_only_usd_total": pool,
        "berth_pool_watts": pool,
        "berth_pool_demand_requests_per_second": pool,
        "berth_pool_observed_requests_per_second": pool,
        "berth_pool_condition": pool | {"type", "status"},
        "berth_hardware_usd_per_hour": {"hardware_class", "capacity_type", "source"},
        "berth_hardware_constrained": {"hardware_class", "capacity_type"},
        "berth_plan_duration_seconds_bucket": {"le"},
        "berth_plan_duration_seconds_count": set(),
        "berth_plan_duration_seconds_sum": set(),
        "berth_plan_gap_ratio": set(),
        "berth_plans_total": {"result"},
        "berth_last_success_timestamp_seconds": set(),
    }


def test_only_a_pass_that_left_the_cluster_as_planned_counts_as_success(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    telemetry.passed("success", 100.0)
    telemetry.passed("partial", 200.0)
    telemetry.passed("error", 300.0)
    assert registry.get_sample_value("berth_last_success_timestamp_seconds") == 100.0
    for result in ("success", "partial", "error"):
        assert registry.get_sample_value("berth_plans_total", {"result": result}) == 1


def test_what_a_pool_keeps_without_a_place_in_the_plan_costs_what_its_status_says(
    make_class: MakeClass, now: datetime, make_pool: MakePool, make_plan: MakePlan
) -> None:
    pool = make_pool()
    kept = {"hardwareClass": "doomed", "capacityType": "OnDemand", "replicas": 2, "usdPerHour": "1.200"}
    status = InferencePoolStatus.model_validate({"placements": [kept | {"trafficPercent": 100}]})
    workers = [_worker("a", hardware_class="doomed"), _worker("b", hardware_class="doomed", ready=False)]
    snapshot = Snapshot(now=now, pools=(pool,), hardware_classes=(make_class(),))
    for plan in (Plan({pool.key: make_plan(pool, placements=())}, 0.0, "Optimal"), Plan({}, 0.0, "Optimal")):
        found = readings(snapshot, plan, workers, {pool.key: status})
        assert found.gauges["berth_pool_usd_per_hour"] == {(*AGENTS, "doomed", "OnDemand"): 1.2}
        assert found.usd_per_hour[SPENT] == {AGENTS: pytest.approx(0.6)}


def test_a_pool_only_recommended_costs_nothing(read: Callable[..., Readings], make_pool: MakePool) -> None:
    from berth_operator.api import resolve  # noqa: PLC0415

    effective = resolve(make_pool(placement={"mode": "Recommend"}).spec)
    gauges = read(effective=effective, usd_per_hour=Decimal("1.276"), watts=100).gauges
    for name in ("usd_per_hour", "replicas", "gpu_only_usd_per_hour", "watts"):
        assert gauges[f"berth_pool_{name}"] == {}, name


def test_workers_of_a_pool_that_is_only_given_advice_now_cost_what_their_nodes_do(
    make_class: MakeClass, now: datetime, make_pool: MakePool, make_plan: MakePlan
) -> None:
    pool, hardware = make_pool(placement={"mode": "Recommend"}), make_class()
    snapshot = Snapshot(now=now, pools=(pool,), hardware_classes=(hardware,))
    name, kind = hardware.metadata.name, CapacityType.ON_DEMAND
    stays = (Stay(pool.key, name, kind, 3, 3, 1, None, Decimal("1.914")),)
    plan = Plan({pool.key: make_plan(pool)}, 0.0, "Optimal", staying=stays)
    found = readings(snapshot, plan, [], {})
    assert found.gauges["berth_pool_usd_per_hour"] == {(*AGENTS, name, kind.value): 1.914}


def test_names_and_help_texts_are_unique() -> None:
    texts = [text for text, _ in (*GAUGES.values(), *COUNTERS.values())]
    assert len(texts) == len(set(texts))
