"""Does a pool stay where it runs unless moving is worth it?"""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from berth_operator.api import HardwareClass, InferencePool, Quantization
from berth_operator.planner import Plan, PoolPlan, RunningPlacement, fleet
from berth_operator.planner.effort import Effort
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solution import Solution

Make = Callable[..., Any]
STEADY = {"maxTrafficPercent": 0, "minOnDemandReplicas": 0, "surviveLossPercent": 0}


@pytest.fixture
def classes(hardware: Make) -> Callable[..., list[HardwareClass]]:
    def make(old: str = "1.00", new: str = "0.90", **changes: Any) -> list[HardwareClass]:
        return [hardware("old", prices={"OnDemand": old}, **changes), hardware("new", prices={"OnDemand": new})]

    return make


@pytest.fixture
def settled(pool: Make) -> Callable[..., InferencePool]:
    """A pool whose moves must save at least 0.10 USD/h and 15 %, 10 minutes after the last."""

    def make(name: str = "settled", rps: str = "1", **changes: Any) -> InferencePool:
        placement = {"spot": STEADY} | changes.pop("placement", {})
        shape = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}
        made: InferencePool = pool(name, rps, model="tested-model", shape=shape, placement=placement, **changes)
        return made

    return make


@pytest.fixture
def replan(plan_for: Make, profile: Make, running: Callable[..., RunningPlacement]) -> Callable[..., PoolPlan]:
    """The plan of a pool that runs one replica on class `old`."""

    def make(one: InferencePool, classes: list[HardwareClass], replicas: int = 1) -> PoolPlan:
        profiles = tuple(profile(c.metadata.name) for c in classes)
        runs = (running(one.key, "old", replicas=replicas),)
        planned: PoolPlan = plan_for([one], classes, serving_profiles=profiles, running=runs).pools[one.key]
        return planned

    return make


def _on(planned: PoolPlan) -> set[str]:
    return {p.hardware_class for p in planned.placements}


def test_a_small_saving_moves_nothing_and_the_plan_says_why(replan: Make, settled: Make, classes: Make) -> None:
    planned = replan(settled(), classes(old="1.00", new="0.90"))
    assert _on(planned) == {"old"}
    assert planned.kept is not None
    assert planned.kept.reason == "SavingsTooSmall"
    assert "would save $0.10/h (10.0 %), less than minSavingsPercent 15" in planned.kept.message
    other = next(c for c in planned.candidates if c.hardware_class == "new")
    assert other.reason == planned.kept.message


def test_both_thresholds_must_be_passed(replan: Make, settled: Make, classes: Make) -> None:
    dollars = {"disruption": {"minSavingsUsdPerHour": "0.50", "minSavingsPercent": 15}}
    planned = replan(settled(placement=dollars), classes(old="1.00", new="0.60"))
    assert _on(planned) == {"old"}
    assert planned.kept is not None
    assert "save $0.40/h, less than minSavingsUsdPerHour 0.50" in planned.kept.message
    assert _on(replan(settled(placement=dollars), classes(old="1.00", new="0.50"))) == {"new"}


def test_a_large_saving_moves(replan: Make, settled: Make, classes: Make) -> None:
    planned = replan(settled(), classes(old="1.00", new="0.80"))
    assert _on(planned) == {"new"}
    assert planned.kept is None


def test_a_cooldown_holds_even_a_large_saving_until_it_is_over(
    replan: Make, settled: Make, classes: Make, now: datetime
) -> None:
    def moved(ago: timedelta) -> InferencePool:
        one: InferencePool = settled(status={"lastMoveTime": (now - ago).isoformat()})
        return one

    held = replan(moved(timedelta(minutes=9)), classes(new="0.20"))
    assert _on(held) == {"old"}
    assert held.kept is not None
    assert held.kept.reason == "Cooldown"
    assert "2026-11-21T12:01:00" in held.kept.message
    assert _on(replan(moved(timedelta(minutes=10)), classes(new="0.20"))) == {"new"}


def test_a_last_move_far_in_the_future_was_written_by_a_wrong_clock_and_holds_nothing(
    replan: Make, settled: Make, classes: Make, now: datetime
) -> None:
    def on_after(ahead: timedelta) -> set[str]:
        return _on(replan(settled(status={"lastMoveTime": (now + ahead).isoformat()}), classes(new="0.20")))

    assert on_after(timedelta(seconds=30)) == {"old"}
    assert on_after(timedelta(days=365)) == {"new"}


def test_with_no_thresholds_equal_cost_still_moves_nothing(replan: Make, settled: Make, classes: Make) -> None:
    free = {"disruption": {"minSavingsUsdPerHour": "0", "minSavingsPercent": 0, "cooldown": "0s"}}
    assert _on(replan(settled(placement=free), classes(old="1.00", new="1.00"))) == {"old"}
    assert _on(replan(settled(placement=free), classes(old="1.00", new="0.99"))) == {"new"}


def test_more_or_fewer_replicas_on_the_same_hardware_are_no_move(
    replan: Make, settled: Make, classes: Make, now: datetime
) -> None:
    just_moved = {"lastMoveTime": now.isoformat()}
    grown = replan(settled(rps="20", status=just_moved), classes())
    assert (_on(grown), grown.placements[0].replicas) == ({"old"}, 3)
    shrunk = replan(settled(rps="1", status=just_moved), classes(), replicas=6)
    assert (_on(shrunk), shrunk.placements[0].replicas) == ({"old"}, 1)


def test_unserved_demand_moves_at_once_whatever_the_cooldown(
    replan: Make, settled: Make, classes: Make, now: datetime
) -> None:
    one = settled(rps="20", status={"lastMoveTime": now.isoformat()})
    planned = replan(one, classes(new="3.00", max_nodes={"OnDemand": 1}))
    assert planned.unserved_requests_per_second == 0
    assert "new" in _on(planned)


def test_replicas_missing_to_the_minimum_move_at_once_whatever_the_cooldown(
    replan: Make, settled: Make, classes: Make, now: datetime
) -> None:
    one = settled(scaling={"minReplicas": 3}, status={"lastMoveTime": now.isoformat()})
    planned = replan(one, classes(new="3.00", max_nodes={"OnDemand": 1}))
    assert sum(p.replicas for p in planned.placements) == 3
    assert _on(planned) == {"old", "new"}


def test_leaving_hardware_that_would_be_left_anyway_is_not_said_to_save_too_little(
    plan_for: Make, settled: Make, classes: Make, profile: Make, running: Make
) -> None:
    planned = plan_for(
        [settled()],
        classes(old="1.00", new="1.00"),
        serving_profiles=(profile("old"), profile("new")),
        running=(running("demo/settled", "old"), running("demo/settled", "new")),
    ).pools["demo/settled"]
    assert len(planned.placements) == 1
    assert planned.kept is None


def test_hardware_that_no_longer_meets_the_objective_is_left_at_once(
    plan_for: Make, settled: Make, classes: Make, profile: Make, running: Make, now: datetime
) -> None:
    slow = [{"concurrency": 1, "contextTokens": 1000, "decodeTokensPerSecond": "5", "interTokenLatencyP99": "300ms"}]
    planned = plan_for(
        [settled(status={"lastMoveTime": now.isoformat()})],
        classes(old="1.00", new="5.00"),
        serving_profiles=(profile("old", points=slow), profile("new")),
        running=(running("demo/settled", "old"),),
    ).pools["demo/settled"]
    assert _on(planned) == {"new"}


def test_a_class_that_is_gone_is_left_for_what_remains(
    plan_for: Make, settled: Make, classes: Make, profile: Make, running: Make
) -> None:
    planned = plan_for(
        [settled()],
        classes(new="5.00")[1:],
        serving_profiles=(profile("new"),),
        running=(running("demo/settled", "old"),),
    ).pools["demo/settled"]
    assert _on(planned) == {"new"}


def test_a_low_priority_pool_gives_way_on_shared_hardware_even_in_its_cooldown(
    plan_for: Make, settled: Make, hardware: Make, profile: Make, running: Make, now: datetime
) -> None:
    scarce = hardware("old", prices={"OnDemand": "1"}, max_nodes={"OnDemand": 1})
    other = hardware("new", prices={"OnDemand": "4"})
    low = settled("low", status={"lastMoveTime": now.isoformat()})
    high = settled("high", priority=9, placement={"hardware": {"allow": {"names": ["old"]}}})
    plan = plan_for(
        [low, high],
        [scarce, other],
        serving_profiles=(profile("old"), profile("new")),
        running=(running("demo/low", "old"),),
    )
    assert _on(plan.pools["demo/high"]) == {"old"}
    assert _on(plan.pools["demo/low"]) == {"new"}


def test_in_a_shortage_of_a_large_fleet_who_would_free_nothing_for_others_stays(
    plan_for: Make, settled: Make, hardware: Make, profile: Make, running: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pools need the one node of a class; a third saves too little by moving, a fourth stands in their way."""
    monkeypatch.setattr(fleet, "FLAT", 0)
    classes = [
        hardware("old", prices={"OnDemand": "1"}),
        hardware("new", prices={"OnDemand": "0.95"}),
        hardware("scarce", prices={"OnDemand": "0.90"}, max_nodes={"OnDemand": 1}),
    ]
    only = {"hardware": {"allow": {"names": ["scarce"]}}}
    pools = [settled("sits"), settled("gives"), settled("one", placement=only), settled("two", placement=only)]
    plan = plan_for(
        pools,
        classes,
        serving_profiles=tuple(profile(c.metadata.name) for c in classes),
        running=(running("demo/sits", "old"), running("demo/gives", "scarce")),
    )
    assert sorted(bool(plan.pools[f"demo/{name}"].placements) for name in ("one", "two")) == [False, True]
    assert _on(plan.pools["demo/sits"]) == {"old"}
    assert _on(plan.pools["demo/gives"]) == {"new"}


@pytest.fixture
def replan_two(plan_for: Make, settled: Make, hardware: Make, profile: Make, running: Make) -> Callable[[], Plan]:
    """The plan of `sits`, on a scarce node that would save `wants` much; anything else saves `wants` little."""

    def make() -> Plan:
        scarce = hardware("scarce", prices={"OnDemand": "0.50"}, max_nodes={"OnDemand": 1})
        other = hardware("other", prices={"OnDemand": "0.55"})
        classes = [hardware("old"), scarce, other, hardware("poor", prices={"OnDemand": "0.95"})]
        deny = {"hardware": {"deny": {"names": ["other"]}}}
        planned: Plan = plan_for(
            [settled("sits"), settled("wants", placement=deny)],
            classes,
            serving_profiles=tuple(profile(c.metadata.name) for c in classes),
            running=(running("demo/sits", "scarce"), running("demo/wants", "old")),
        )
        return planned

    return make


def test_a_saving_that_needs_nodes_another_pool_keeps_is_not_taken_nor_half_taken(
    replan_two: Callable[[], Plan],
) -> None:
    """Moving freely, `sits` would give its scarce node to `wants`; as it stays, `wants` is left with a poor saving."""
    plan = replan_two()
    assert _on(plan.pools["demo/sits"]) == {"scarce"}
    assert _on(plan.pools["demo/wants"]) == {"old"}
    kept = plan.pools["demo/wants"].kept
    assert kept is not None
    assert "moving to poor OnDemand would save $0.05/h" in kept.message


class _WorseAtLast(FleetSolver):
    """Serves nobody the fourth time that it is asked, as a search may that has more pools held."""

    asked = 0

    def solve(
        self, problems: Sequence[PoolProblem], effort: Effort = Effort.PROVE, *, settled: Set[str] | None = None
    ) -> Solution:
        found = super().solve(problems, effort, settled=settled)
        self.asked += 1
        if self.asked < 4:
            return found
        return replace(found, pools={key: replace(one, unserved=1.0) for key, one in found.pools.items()})


def test_a_plan_that_serves_less_is_not_taken_for_a_saving_that_is_too_small(
    replan_two: Callable[[], Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fleet above, where holding `wants` as well served less: it moves, small as the saving is."""
    monkeypatch.setattr(fleet, "FleetSolver", _WorseAtLast)
    plan = replan_two()
    assert _on(plan.pools["demo/sits"]) == {"scarce"}
    assert _on(plan.pools["demo/wants"]) == {"poor"}


def test_a_pool_of_any_format_keeps_the_one_it_serves(
    plan_for: Make, settled: Make, hardware: Make, profile: Make, running: Make
) -> None:
    def planned(quantization: Quantization | None) -> Quantization:
        plan = plan_for(
            [settled(quantization="Any")],
            [hardware("old")],
            serving_profiles=(
                profile("old", name="int8", replicasPerNode=1),
                profile("old", name="bf16", quantization="BF16", points=[_FASTER]),
            ),
            running=(running("demo/settled", "old", quantization=quantization),),
        )
        served: Quantization = plan.pools["demo/settled"].placements[0].quantization
        return served

    assert planned(Quantization.INT8) is Quantization.INT8
    assert planned(Quantization.BF16) is Quantization.BF16


_FASTER = {"concurrency": 64, "contextTokens": 1000, "decodeTokensPerSecond": "9000", "interTokenLatencyP99": "9ms"}


def test_noisy_demand_and_prices_never_flip_a_pool_back_and_forth(
    plan_for: Make, settled: Make, classes: Make, profile: Make, running: Make
) -> None:
    profiles = (profile("old"), profile("new"))
    on, moves = "old", 0
    for step in range(12):
        new_price = "0.95" if step % 2 else "1.05"
        rps = str(5 + (step * 7 % 3) * 0.5)
        plan = plan_for(
            [settled(rps=rps)],
            classes(old="1.00", new=new_price),
            serving_profiles=profiles,
            running=(running("demo/settled", on),),
        )
        after = _on(plan.pools["demo/settled"])
        moves += after != {on}
        on = min(after)
    assert moves == 0
