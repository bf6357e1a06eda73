"""Does a stale price move no placement, and yet keep nothing from being served?"""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, ServingProfile
from berth_operator.planner import Plan, RunningPlacement, Snapshot, plan
from berth_operator.prices import Price, plan_priced
from hypothesis import given, settings
from hypothesis import strategies as st

Make = Callable[..., Any]
NEW, OLD = ("new", CapacityType.ON_DEMAND), ("old", CapacityType.ON_DEMAND)


@pytest.fixture(scope="session")
def snapshot(pool: Make, hardware: Make, profile: Make, running: Make, now: Any) -> Callable[..., Snapshot]:
    """A pool that runs on `old` at 1.00 USD/h; `new` is priced as asked."""

    def make(price: str, *, runs: bool = True, rps: str = "1", old: Any = None, **spec: Any) -> Snapshot:
        one: InferencePool = pool(
            rps=rps, model="tested-model", shape={"promptTokens": 900, "outputTokens": 100}, **spec
        )
        classes: tuple[HardwareClass, ...] = (
            hardware("old", prices={"OnDemand": "1.00"}, **(old or {})),
            hardware("new", prices={"OnDemand": price}),
        )
        profiles: tuple[ServingProfile, ...] = (profile("old"), profile("new"))
        placed: tuple[RunningPlacement, ...] = (running(one.key, "old"),) if runs else ()
        return Snapshot(now, (one,), classes, profiles, placed)

    return make


@pytest.fixture(scope="session")
def stale(now: Any) -> Callable[..., dict[Any, Price]]:
    def make(*keys: Any) -> dict[Any, Price]:
        return {key: Price(Decimal("0.2"), "AWS", now - timedelta(hours=9), stale=True) for key in keys}

    return make


def on(planned: Plan) -> set[str]:
    (only,) = planned.pools.values()
    return {p.hardware_class for p in only.placements}


def test_a_fresh_price_moves_a_pool_and_a_stale_one_does_not(snapshot: Make, stale: Make) -> None:
    cheap = snapshot("0.20")
    assert on(plan_priced(cheap, {})) == {"new"}
    held = plan_priced(cheap, stale(NEW))
    assert on(held) == {"old"}
    (found,) = held.pools.values()
    assert found.kept is not None
    assert found.kept.reason == "StalePrice"
    assert "price of new OnDemand is as of 2026-11-21T03:00:00Z (AWS), too old to move for" in found.kept.message
    assert next(c.reason for c in found.candidates if c.hardware_class == "new") == found.kept.message
    assert found.effective.cooldown == timedelta(minutes=10), "its own settings are shown, not what held it"


def test_nor_does_a_stale_price_push_a_pool_off_its_hardware(snapshot: Make, stale: Make) -> None:
    assert on(plan_priced(snapshot("0.20"), stale(OLD))) == {"old"}


def test_what_has_to_be_placed_is_placed_by_the_stale_price_for_want_of_a_better(snapshot: Make, stale: Make) -> None:
    assert on(plan_priced(snapshot("0.20", runs=False), stale(NEW, OLD))) == {"new"}


def test_more_demand_served_goes_before_the_age_of_a_price(snapshot: Make, stale: Make) -> None:
    growing = snapshot("3.00", rps="20", old={"max_nodes": {"OnDemand": 1}})
    planned = plan_priced(growing, stale(NEW))
    assert "new" in on(planned)
    (found,) = planned.pools.values()
    assert found.unserved_requests_per_second == 0


def test_a_zero_cooldown_holds_no_less(snapshot: Make, stale: Make) -> None:
    eager = {"disruption": {"minSavingsUsdPerHour": "0", "minSavingsPercent": 0, "cooldown": "0s"}}
    assert on(plan_priced(snapshot("0.20", placement=eager), stale(NEW))) == {"old"}


@settings(max_examples=20, deadline=None)
@given(price=st.integers(5, 300), stale_new=st.booleans(), stale_old=st.booleans(), runs=st.booleans())
def test_stale_prices_change_nothing_but_moves(
    snapshot: Make, stale: Make, price: int, stale_new: bool, stale_old: bool, runs: bool
) -> None:
    asked = snapshot(f"{price / 100:.2f}", runs=runs)
    old = stale(*([NEW] if stale_new else []), *([OLD] if stale_old else []))
    planned = plan_priced(asked, old)
    free = plan(asked)
    if runs and old:
        assert on(planned) == {"old"}
    else:
        assert on(planned) == on(free)
    assert [p.unserved_requests_per_second for p in planned.pools.values()] == [0.0]
