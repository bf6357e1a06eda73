"""Is a plan after a small change as sound as one made afresh, and is everything else left alone?"""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from berth_operator.api import InferencePool
from berth_operator.planner import Planned, Snapshot, amended, fleet, planned, replanned

Make = Callable[..., Any]


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small fleets are decomposed, since only such plans leave a bound by pool."""
    monkeypatch.setattr(fleet, "FLAT", 0)


def _with_demand(one: InferencePool, rps: str) -> InferencePool:
    body = one.to_api()
    body["spec"]["workload"]["demand"] = {"requestsPerSecond": rps}
    return InferencePool.model_validate(body)


def _changed(snapshot: Snapshot, rps: str) -> Snapshot:
    return replace(snapshot, pools=(_with_demand(snapshot.pools[0], rps), *snapshot.pools[1:]))


def _nodes(plan: Planned) -> dict[tuple[str, str], int]:
    used: dict[tuple[str, str], int] = {}
    for one in plan.plan.pools.values():
        for p in one.placements:
            key = p.hardware_class, p.capacity_type.value
            used[key] = used.get(key, 0) + p.nodes
    return used


@pytest.mark.usefixtures("decomposed")
@pytest.mark.parametrize("rps", ["1.5", "12", "40"])
def test_only_the_changed_pool_is_planned_anew_and_the_gap_stays_proven(snapshot: Snapshot, rps: str) -> None:
    last = planned(snapshot)
    changed = _changed(snapshot, rps)
    after, afresh = replanned(last, changed), planned(changed)
    key = snapshot.pools[0].key
    assert (
        after.plan.pools[key].effective.requests_per_second == changed.pools[0].spec.workload.demand.requests_per_second
    )
    assert after.plan.pools[key].unserved_requests_per_second == 0
    used = _nodes(after)
    assert all(used.get(k, 0) <= most for k, most in {("a", "OnDemand"): 9, ("a", "Spot"): 4}.items())
    assert after.bound <= min(after.cost, afresh.cost) + 1e-3
    if after.bound != afresh.bound:  # not planned afresh: the others are where they were
        others = {k: v for k, v in after.plan.pools.items() if k != key}
        assert others == {k: v for k, v in last.plan.pools.items() if k != key}


@pytest.mark.usefixtures("decomposed")
def test_what_lets_replicas_span_nodes_makes_a_plan_afresh(snapshot: Snapshot) -> None:
    last = planned(snapshot)
    assert amended(last, snapshot) is last
    assert amended(last, replace(snapshot, spanning=False)) is None


@pytest.mark.usefixtures("decomposed")
def test_nothing_changed_gives_the_last_plan(snapshot: Snapshot) -> None:
    last = planned(snapshot)
    assert replanned(last, replace(snapshot, now=snapshot.now + timedelta(minutes=1))) is last


@pytest.mark.usefixtures("decomposed")
def test_a_change_of_hardware_is_planned_afresh(snapshot: Snapshot) -> None:
    last = planned(snapshot)
    fewer = replace(snapshot, hardware_classes=snapshot.hardware_classes[1:])
    assert replanned(last, fewer).plan == planned(fewer).plan


@pytest.mark.usefixtures("decomposed")
def test_a_change_that_asks_for_more_than_there_is_leaves_a_plan_whose_gap_is_unknown(snapshot: Snapshot) -> None:
    last = planned(snapshot)
    body = _with_demand(snapshot.pools[0], "900").to_api()
    body["spec"]["scaling"] = {"maxReplicas": 1}
    after = amended(last, replace(snapshot, pools=(InferencePool.model_validate(body), *snapshot.pools[1:])))
    assert after is not None
    key = snapshot.pools[0].key
    assert after.plan.pools[key].unserved_requests_per_second > 0
    assert math.isnan(after.plan.gap)
    others = {k: v for k, v in after.plan.pools.items() if k != key}
    assert others == {k: v for k, v in last.plan.pools.items() if k != key}


def test_a_flat_plan_leaves_nothing_to_start_from(snapshot: Snapshot) -> None:
    last = planned(snapshot)
    changed = _changed(snapshot, "12")
    assert replanned(last, changed).plan == planned(changed).plan
