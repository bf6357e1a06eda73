"""Is nobody planned onto nodes that workers keep without a place in the plan, and are those nodes counted?"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType
from berth_operator.class_status import nodes_in_use
from berth_operator.cli.plan_diff import changes
from berth_operator.cli.what_if import ask
from berth_operator.planner import Plan, RunningPlacement, Snapshot, Stay, amended, plan, planned

Make = Callable[..., Any]
Where = tuple[str, CapacityType]

SHAPE = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}
A: Where = ("a", CapacityType.ON_DEMAND)
UNKNOWN = {"placement": {"hardware": {"allow": {"names": ["no-such-class"]}}}}
ADVISED = {"placement": {"mode": "Recommend"}}
ONLY_B = {"placement": {"hardware": {"allow": {"names": ["b"]}}}}


@pytest.fixture
def fleet_of(pool: Make, hardware: Make, profile: Make, now: Any) -> Make:
    """A snapshot of pools (name -> spec) of `tested-model`; class a has `nodes` nodes, class b none."""

    def make(pools: dict[str, dict[str, Any]], *running: RunningPlacement, nodes: int = 1, **rest: Any) -> Snapshot:
        each = rest.pop("each", {})
        return Snapshot(
            now=now,
            pools=tuple(
                pool(name, spec.pop("rps", "1"), model="tested-model", shape=SHAPE, **spec)
                for name, spec in ((n, dict(s)) for n, s in pools.items())
            ),
            hardware_classes=(
                hardware("a", max_nodes={"OnDemand": nodes}),
                hardware("b", max_nodes={"OnDemand": 0}),
            ),
            serving_profiles=(profile("a", **each), profile("b")),
            running=running,
            **rest,
        )

    return make


def _on(made: Plan, name: str) -> dict[Where, int]:
    return {(p.hardware_class, p.capacity_type): p.replicas for p in made.pools[f"demo/{name}"].placements}


@pytest.mark.parametrize("spec", [UNKNOWN, ADVISED, ONLY_B])
def test_nobody_is_planned_onto_nodes_that_a_pool_keeps(fleet_of: Make, running: Make, spec: dict[str, Any]) -> None:
    wanted = {"keeps": spec, "wants": {}}
    made = plan(fleet_of(wanted, running("demo/keeps", "a")))
    assert _on(made, "wants") == {}
    short = made.pools["demo/wants"].shortfall
    assert short is not None
    assert "a OnDemand: the one node (maxNodes) is taken by demo/keeps" in short.message
    assert nodes_in_use(made) == {A: 1}
    assert made.staying == (Stay("demo/keeps", *A, 1, 1, 1, None, Decimal(1)),)
    roomy = plan(fleet_of(wanted, running("demo/keeps", "a"), nodes=2))
    assert (_on(roomy, "wants"), nodes_in_use(roomy)) == ({A: 1}, {A: 2})
    gone = plan(fleet_of(wanted))
    assert (_on(gone, "wants"), gone.staying) == ({A: 1}, ())


def test_a_pool_of_mode_recommend_is_advised_to_use_what_it_holds(fleet_of: Make, running: Make) -> None:
    made = plan(fleet_of({"keeps": ADVISED}, running("demo/keeps", "a")))
    assert (_on(made, "keeps"), nodes_in_use(made)) == ({A: 1}, {A: 1})


def test_nodes_under_a_pool_that_does_not_parse_are_counted_as_seen(fleet_of: Make, running: Make) -> None:
    runs = running("demo/broken", "a", replicas=6, nodes=2)
    unreadable = frozenset({"demo/broken"})
    made = plan(fleet_of({"wants": {}}, runs, nodes=2, unreadable=unreadable))
    assert (_on(made, "wants"), nodes_in_use(made)) == ({}, {A: 2})
    assert _on(plan(fleet_of({"wants": {}}, runs, nodes=3, unreadable=unreadable)), "wants") == {A: 1}
    assert nodes_in_use(plan(fleet_of({"wants": {}}, runs, nodes=2))) == {A: 1}  # of a pool that is deleted


def test_what_waits_for_a_node_holds_none(fleet_of: Make, running: Make) -> None:
    waits = running("demo/keeps", "a", replicas=2, ready=0, scheduled_replicas=0)
    made = plan(fleet_of({"keeps": UNKNOWN, "wants": {}}, waits))
    assert (_on(made, "wants"), nodes_in_use(made)) == ({A: 1}, {A: 1})


def test_what_a_budget_takes_away_is_not_kept(fleet_of: Make, running: Make) -> None:
    """Class b costs 1 USD/h, too; there is a node of it, and the demand would take more."""
    spec = ONLY_B | {"rps": "30", "budget": {"maxUsdPerHour": "1"}}
    snapshot = fleet_of({"keeps": spec, "wants": {}}, running("demo/keeps", "a"))
    b = snapshot.hardware_classes[1]
    many = b.spec.capacity[0].model_copy(update={"max_nodes": 9})
    classes = (
        snapshot.hardware_classes[0],
        b.model_copy(update={"spec": b.spec.model_copy(update={"capacity": [many]})}),
    )
    made = plan(replace(snapshot, hardware_classes=classes))
    short = made.pools["demo/keeps"].shortfall
    assert short is not None
    assert (short.reason, _on(made, "wants"), made.staying) == ("Budget", {A: 1}, ())


@pytest.mark.parametrize("first", ["alpha", "omega"])
def test_of_pools_that_count_alike_the_one_that_serves_stays(fleet_of: Make, running: Make, first: str) -> None:
    made = plan(fleet_of({"alpha": {}, "omega": {}}, running(f"demo/{first}", "a")))
    assert _on(made, first) == {A: 1}
    assert made.staying == ()


def test_who_counts_more_gets_the_node_of_who_counts_less(fleet_of: Make, running: Make) -> None:
    made = plan(fleet_of({"serves": {}, "matters": {"priority": 5}}, running("demo/serves", "a")))
    assert _on(made, "matters") == {A: 1}
    assert made.pools["demo/serves"].yields == {A}
    assert (made.staying, nodes_in_use(made)) == ((), {A: 1})


def test_fewer_nodes_than_there_were_take_no_worker_away(fleet_of: Make, running: Make) -> None:
    both = running("demo/one", "a"), running("demo/two", "a")
    made = plan(fleet_of({"one": {}, "two": {"priority": 5}}, *both))
    assert _on(made, "two") == {A: 1}
    assert (made.pools["demo/one"].yields, nodes_in_use(made)) == (frozenset(), {A: 2})


def test_beside_replicas_that_stay_there_is_room_on_their_node(fleet_of: Make, running: Make) -> None:
    quarter = {"replicasPerNode": 4, "resources": {"cpu": "4", "memory": "8Gi"}}
    for stay, fits in ((3, True), (4, False)):
        made = plan(fleet_of({"keeps": UNKNOWN, "wants": {}}, running("demo/keeps", "a", replicas=stay), each=quarter))
        assert (_on(made, "wants") == {A: 1}) is fits
        assert nodes_in_use(made) == {A: 1}


def test_more_may_stay_than_there_may_be(fleet_of: Make, running: Make) -> None:
    quarter = {"replicasPerNode": 4, "resources": {"cpu": "4", "memory": "8Gi"}}
    for each in ({}, quarter):
        keeps = running("demo/keeps", "a", replicas=9)
        made = plan(fleet_of({"keeps": UNKNOWN, "wants": {"rps": "100"}}, keeps, each=each))
        assert (_on(made, "wants").get(A, 0) <= 3, made.solver_status) == (True, "Optimal")


def test_an_amended_plan_keeps_off_the_same_nodes(fleet_of: Make, running: Make) -> None:
    kept = running("demo/keeps", "a")
    last = replace(planned(fleet_of({"keeps": UNKNOWN}, kept)), large=True)
    after = amended(last, fleet_of({"keeps": UNKNOWN, "wants": {}}, kept))
    assert after is not None
    assert (_on(after.plan, "wants"), nodes_in_use(after.plan)) == ({}, {A: 1})
    assert after.plan.staying == last.plan.staying
    refused = amended(replace(planned(fleet_of({"wants": {}}, kept)), large=True), fleet_of({"keeps": UNKNOWN}, kept))
    assert refused is not None
    assert refused.plan.staying == last.plan.staying


def test_what_if_nothing_ran_leaves_the_nodes_that_others_keep(fleet_of: Make, running: Make) -> None:
    held = fleet_of({"keeps": UNKNOWN, "wants": {}}, running("demo/keeps", "a"))
    free = fleet_of({"keeps": {}, "wants": {}}, running("demo/keeps", "a"), nodes=2)
    for snapshot, placed in ((held, False), (free, True)):
        found = ask(snapshot, next(p for p in snapshot.pools if p.key == "demo/wants")).afresh
        assert found is not None
        assert bool(found.placements) is placed


def test_what_a_pool_keeps_is_no_change_of_a_plan(fleet_of: Make, running: Make) -> None:
    snapshot = fleet_of({"keeps": ONLY_B}, running("demo/keeps", "a"))
    change = changes(plan(snapshot), snapshot)["demo/keeps"]
    assert (change.steps, change.more_usd_per_hour) == ((), 0)
    allowed = fleet_of({"keeps": {"priority": -1}, "wants": {}}, running("demo/keeps", "a"))
    (step,) = changes(plan(allowed), allowed)["demo/keeps"].steps
    assert (step.before, step.after) == (1, 0)


def test_a_worker_that_stays_and_gets_its_node_is_counted_from_then_on(fleet_of: Make, running: Make) -> None:
    def made(scheduled: int) -> Snapshot:
        return fleet_of({"keeps": UNKNOWN, "wants": {}}, running("demo/keeps", "a", scheduled_replicas=scheduled))

    last = planned(made(0))
    assert amended(last, made(0)) is last
    assert amended(last, made(1)) is None  # a small fleet is planned afresh
    after = amended(replace(last, large=True), made(1))
    assert after is not None
    assert [one.pool for one in after.plan.staying] == ["demo/keeps"]
