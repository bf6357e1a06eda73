"""Does a large fleet stand still when nothing changes, and does a new leader go on from the plan in force?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from berth_operator.api import HardwareClass, InferencePool, InferencePoolStatus, format_time
from berth_operator.planner import (
    Plan,
    Planned,
    RunningPlacement,
    Snapshot,
    amended,
    better,
    fleet,
    plan,
    planned,
    restored,
)
from berth_operator.replanner import REFRESH_SECONDS, Replanner
from berth_operator.status import pool_status

Make = Callable[..., Any]
SHAPE = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even twelve pools count as a large fleet."""
    monkeypatch.setattr(fleet, "FLAT", 0)


def _statuses(made: Plan, snapshot: Snapshot) -> dict[str, InferencePoolStatus]:
    running: dict[str, list[RunningPlacement]] = {}
    for one in snapshot.running:
        running.setdefault(one.pool, []).append(one)
    return {p.key: pool_status(p, made.pools[p.key], running.get(p.key, []), snapshot.now) for p in snapshot.pools}


def _carried_out(snapshot: Snapshot, made: Plan) -> Snapshot:
    """The snapshot once everything runs as planned and statuses are written."""
    running = tuple(
        RunningPlacement(
            key, p.hardware_class, p.capacity_type, p.replicas, p.replicas, p.replicas, quantization=p.quantization
        )
        for key, one in made.pools.items()
        for p in one.placements
    )
    after = replace(snapshot, running=running)
    for _ in range(2):  # the second one sees the first one's conditions
        statuses = _statuses(made, after)
        after = replace(after, pools=tuple(p.model_copy(update={"status": statuses[p.key]}) for p in after.pools))
    return after


def _untouched(before: Plan, after: Plan, *but: str) -> bool:
    return all(after.pools[key] is one for key, one in before.pools.items() if key not in but)


def test_a_new_leader_restores_the_plan_in_force_and_writes_no_status(snapshot: Snapshot) -> None:
    made = planned(snapshot).plan
    after = _carried_out(snapshot, made)
    later = replace(after, now=after.now + timedelta(hours=1))
    base = restored(later)
    assert base is not None
    again = amended(base, later)
    assert again is not None
    assert {k: p.placements for k, p in again.plan.pools.items()} == {k: p.placements for k, p in made.pools.items()}
    statuses = _statuses(again.plan, later)
    assert [key for key, status in statuses.items() if status is not _pool(later, key).status] == []


def test_pools_that_changed_while_nobody_led_are_planned_anew_and_the_others_stay(
    snapshot: Snapshot, pool: Make
) -> None:
    made = planned(snapshot).plan
    after = _carried_out(snapshot, made)
    edited = pool("p00", "3", model="tested-model", shape=SHAPE)
    edited = edited.model_copy(update={"metadata": edited.metadata.model_copy(update={"generation": 2})})
    now = replace(after, pools=(edited, *after.pools[1:]))
    again = Replanner().solve(now)
    assert again.pools[edited.key].effective.requests_per_second == 3
    assert {k: p.placements for k, p in again.pools.items() if k != edited.key} == {
        k: p.placements for k, p in made.pools.items() if k != edited.key
    }


def test_a_small_fleet_is_never_restored(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    after = _carried_out(snapshot, planned(snapshot).plan)
    monkeypatch.setattr(fleet, "FLAT", 10_000)
    assert restored(after) is None
    assert Replanner().solve(after) == plan(after)


def test_workers_becoming_ready_change_no_plan(snapshot: Snapshot) -> None:
    replanner = Replanner()
    made = replanner.solve(snapshot)
    after = _carried_out(snapshot, made)
    starting = replace(after, running=tuple(replace(r, ready_replicas=0) for r in after.running))
    first = replanner.solve(starting)
    assert _untouched(first, replanner.solve(after))


def test_a_plan_carried_out_is_not_made_again(snapshot: Snapshot) -> None:
    replanner = Replanner()
    made = replanner.solve(snapshot)
    settled = _carried_out(snapshot, made)
    unmoved = tuple(
        p.model_copy(update={"status": q.status}) for p, q in zip(settled.pools, snapshot.pools, strict=True)
    )
    assert _untouched(made, replanner.solve(replace(settled, pools=unmoved)))


def test_a_new_pool_and_a_deleted_one_leave_all_others_alone(snapshot: Snapshot, pool: Make) -> None:
    replanner = Replanner()
    settled = _carried_out(snapshot, replanner.solve(snapshot))
    before = replanner.solve(settled)
    new = pool("new", "4", model="tested-model", shape=SHAPE)
    more = replanner.solve(replace(settled, pools=(*settled.pools, new)))
    assert more.pools[new.key].placements
    assert _untouched(before, more)
    fewer = replanner.solve(replace(settled, pools=(*settled.pools[1:], new)))
    assert settled.pools[0].key not in fewer.pools
    assert _untouched(more, fewer, settled.pools[0].key)


def test_a_fleet_that_outgrows_the_exact_solution_moves_nothing_for_it(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "FLAT", 60)
    replanner = Replanner()
    few = replace(snapshot, pools=snapshot.pools[:6])
    before = replanner.solve(few)
    after = replanner.solve(snapshot)
    assert all(after.pools[p.key].placements for p in snapshot.pools)
    assert _untouched(before, after)


def test_nodes_that_others_hold_are_not_given_twice(snapshot: Snapshot, pool: Make) -> None:
    replanner = Replanner()
    settled = _carried_out(snapshot, replanner.solve(snapshot))
    new = tuple(pool(f"new{i}", "20", model="tested-model", shape=SHAPE) for i in range(4))
    after = replanner.solve(replace(settled, pools=(*settled.pools, *new)))
    for name, kind, most in [("a", "OnDemand", 9), ("a", "Spot", 4), ("b", "OnDemand", 9), ("b", "Spot", 5)]:
        placed = (p for one in after.pools.values() for p in one.placements)
        assert sum(p.nodes for p in placed if (p.hardware_class, p.capacity_type.value) == (name, kind)) <= most


def test_the_plan_made_afresh_is_taken_where_it_saves_a_share_and_not_for_less(snapshot: Snapshot, pool: Make) -> None:
    clock = [0.0]
    replanner = Replanner(clock=lambda: clock[0])
    settled = _carried_out(snapshot, replanner.solve(snapshot))
    edited = pool("p00", "3", model="tested-model", shape=SHAPE)
    settled = replace(settled, pools=(edited, *settled.pools[1:]))
    before = replanner.solve(settled)
    assert not replanner.refresh_due
    clock[0] += REFRESH_SECONDS
    assert replanner.refresh_due
    taken = replanner.refresh()
    afresh = planned(settled).plan
    assert taken == better(afresh, before)
    assert not replanner.refresh_due
    after = replanner.solve(settled)
    assert _untouched(before, after) or taken
    assert after.gap < 0.2


def _without(snapshot: Snapshot, *names: str, instead: Sequence[HardwareClass] = ()) -> Snapshot:
    kept = (c for c in snapshot.hardware_classes if c.metadata.name not in names)
    return replace(snapshot, hardware_classes=(*instead, *kept))


def test_a_price_that_changed_is_planned_with_beside_the_passes(snapshot: Snapshot, hardware: Make, pool: Make) -> None:
    replanner = Replanner()
    before = replanner.solve(snapshot)
    dear = hardware("a", prices={"OnDemand": "5.00", "Spot": "2.00"}, max_nodes={"OnDemand": 9, "Spot": 4})
    changed = _without(snapshot, "a", instead=[dear])
    meanwhile = replanner.solve(changed)
    assert _untouched(before, meanwhile)
    assert math.isnan(meanwhile.gap)  # nothing is known of how far it is from the best at these prices
    new = pool("new", "4", model="tested-model", shape=SHAPE)
    more = replace(changed, pools=(*changed.pools, new))
    assert replanner.solve(more).pools[new.key].placements  # others' changes do not wait
    assert replanner.refresh_due
    assert replanner.refresh()
    assert not replanner.refresh_due
    assert replanner.solve(more) == plan(more)


def test_changes_of_classes_while_all_is_planned_are_planned_with_thereafter(
    snapshot: Snapshot, hardware: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    replanner = Replanner()
    replanner.solve(snapshot)
    first, second = (
        _without(snapshot, "a", instead=[hardware("a", prices={"OnDemand": usd, "Spot": usd})])
        for usd in ("5.00", "9.00")
    )
    replanner.solve(first)

    def disturbed(taken: Snapshot) -> Planned:
        if taken is first:
            replanner.solve(second)
        return planned(taken)

    monkeypatch.setattr("berth_operator.replanner.planned", disturbed)
    assert replanner.refresh()
    replanner.solve(second)
    assert replanner.refresh_due
    assert replanner.refresh()
    assert replanner.solve(second) == plan(second)
    assert not replanner.refresh_due


def test_pools_whose_hardware_is_gone_are_planned_at_once_and_no_others(snapshot: Snapshot) -> None:
    replanner = Replanner()
    before = replanner.solve(snapshot)
    on_a = {key for key, one in before.pools.items() if any(p.hardware_class == "a" for p in one.placements)}
    assert 0 < len(on_a) < len(before.pools)
    after = replanner.solve(_without(snapshot, "a"))
    assert {key for key in before.pools if after.pools[key] is not before.pools[key]} == on_a
    assert all(one.placements and one.unserved_requests_per_second == 0 for one in after.pools.values())
    assert {p.hardware_class for one in after.pools.values() for p in one.placements} <= {"b", "c", "d"}


def test_where_much_is_gone_all_is_planned_at_once(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berth_operator.planner.replanning.MOST_FORCED", 0)
    replanner = Replanner()
    replanner.solve(snapshot)
    gone = _without(snapshot, "a")
    assert replanner.solve(gone) == plan(gone)
    assert not replanner.refresh_due


def test_of_pools_on_hardware_that_is_short_those_are_planned_at_once_that_lack_nodes(
    snapshot: Snapshot, hardware: Make
) -> None:
    replanner = Replanner()
    settled = _carried_out(snapshot, replanner.solve(snapshot))
    before = replanner.solve(settled)
    on_a = sorted(key for key, one in before.pools.items() if any(p.hardware_class == "a" for p in one.placements))
    running = tuple(
        replace(r, ready_replicas=0, scheduled_replicas=0) if (r.pool, r.hardware_class) == (on_a[0], "a") else r
        for r in settled.running
    )
    limits = {"OnDemand": 9, "Spot": 4}
    until = format_time(settled.now + timedelta(minutes=5))
    entries = [{"type": kind, "since": until, "until": until, "backOff": "5m", "message": "none"} for kind in limits]
    short = hardware("a", prices={"OnDemand": "0.50", "Spot": "0.20"}, max_nodes=limits)
    short = HardwareClass.model_validate(short.to_api() | {"status": {"constrained": entries}})
    after = replanner.solve(replace(_without(settled, "a", instead=[short]), running=running))
    assert {key for key in before.pools if after.pools[key] is not before.pools[key]} == {on_a[0]}
    assert not any(p.hardware_class == "a" for p in after.pools[on_a[0]].placements)


def _pool(snapshot: Snapshot, key: str) -> InferencePool:
    return next(p for p in snapshot.pools if p.key == key)
