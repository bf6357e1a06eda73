"""Which price counts when feeds are late, wrong, dead or back again?"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass
from berth_operator.prices import (
    Price,
    PricePolicy,
    Quote,
    Quotes,
    age_text,
    complaint,
    in_status,
    own_prices,
    price,
    settled_prices,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SPOT = ("c8g", CapacityType.SPOT)
POLICY = PricePolicy()
Make = Callable[..., HardwareClass]


def quote(usd: str, age: timedelta = timedelta(), source: str = "feed") -> Quote:
    return Quote(Decimal(usd), source, NOW - age)


def hardware(make_class: Make, *last: tuple[str, timedelta], generation: int = 1, **spec: Any) -> HardwareClass:
    """A class whose own spot price is 0.255, and what its status remembers of a feed."""
    status = {
        "observedGeneration": generation,
        "prices": [
            {"type": "Spot", "usdPerHour": usd, "source": "feed", "asOf": (NOW - age).isoformat()} for usd, age in last
        ],
    }
    made = make_class("c8g", **spec)
    return made.model_copy(update={"status": type(made.status).model_validate(status)})


def in_force(item: HardwareClass, *offered: Quote, failures: tuple[str, ...] = ()) -> Price:
    return price([item], Quotes({SPOT: offered} if offered else {}, failures), NOW).prices[SPOT]


def test_a_sane_quote_is_what_plans_use(make_class: Make) -> None:
    priced = price([make_class("c8g")], Quotes({SPOT: (quote("0.19"),)}), NOW)
    found = priced.prices[SPOT]
    assert (found.usd_per_hour, found.source, found.stale) == (Decimal("0.19"), "feed", False)
    spot = priced.classes[0].capacity_of(CapacityType.SPOT)
    assert spot is not None and spot.usd_per_hour == Decimal("0.19")
    assert priced.prices["c8g", CapacityType.ON_DEMAND].source == "HardwareClass"


@pytest.mark.parametrize(
    ("usd", "why"),
    [("0", "above zero"), ("0.00001", "times the 0.255"), ("80", "times the 0.255"), ("NaN", "above zero")],
)
def test_an_absurd_quote_is_refused_with_the_arithmetic_and_the_last_good_one_stands(
    make_class: Make, usd: str, why: str
) -> None:
    found = in_force(hardware(make_class, ("0.21", timedelta(minutes=5))), quote(usd))
    assert found.usd_per_hour == Decimal("0.21")
    assert found.refused is not None
    assert why in found.refused


def test_without_a_last_good_one_the_classs_own_price_stands(make_class: Make) -> None:
    found = in_force(make_class("c8g"), quote("99"))
    assert (found.usd_per_hour, found.source) == (Decimal("0.255"), "HardwareClass")


def test_a_quote_from_the_future_is_refused(make_class: Make) -> None:
    found = in_force(make_class("c8g"), quote("0.2", -timedelta(hours=1)))
    assert found.source == "HardwareClass"
    assert found.refused is not None and "future" in found.refused


def test_where_the_best_source_is_absurd_the_next_one_is_believed(make_class: Make) -> None:
    found = in_force(make_class("c8g"), quote("-1", source="ConfigMap"), quote("0.2", source="AWS"))
    assert (found.source, found.usd_per_hour) == ("AWS", Decimal("0.2"))
    assert found.refused is not None and "ConfigMap" in found.refused


def test_a_dead_feed_keeps_its_last_good_price_and_shows_its_age(make_class: Make) -> None:
    fresh = in_force(hardware(make_class, ("0.21", timedelta(hours=5))), failures=("AWS is down",))
    assert (fresh.usd_per_hour, fresh.stale) == (Decimal("0.21"), False)
    assert age_text(fresh, NOW) == "5h"
    old = in_force(hardware(make_class, ("0.21", timedelta(hours=7))))
    assert (old.usd_per_hour, old.stale) == (Decimal("0.21"), True)


def test_an_older_quote_never_replaces_a_newer_one(make_class: Make) -> None:
    item = hardware(make_class, ("0.21", timedelta(minutes=1)))
    assert in_force(item, quote("0.3", timedelta(hours=2))).usd_per_hour == Decimal("0.21")


def test_an_owner_who_edits_the_class_overrules_a_stale_price(make_class: Make) -> None:
    item = hardware(make_class, ("0.21", timedelta(hours=7)), generation=0)
    assert in_force(item).source == "HardwareClass"


def test_reserved_nodes_are_priced_by_no_feed(make_class: Make) -> None:
    item = make_class("c8g", capacity=[{"type": "Reserved", "usdPerHour": "0.4"}])
    key = ("c8g", CapacityType.RESERVED)
    assert price([item], Quotes({key: (quote("0.3"),)}), NOW).prices[key].source == "HardwareClass"


def test_a_complaint_names_price_time_source_and_cause(make_class: Make) -> None:
    item = hardware(make_class, ("0.21", timedelta(hours=7)))
    wrong = complaint(price([item], Quotes(failures=("AWS spot history: timed out",)), NOW), "c8g")
    assert wrong is not None
    reason, message = wrong
    assert reason == "Stale"
    for part in ("6h", "0.21", "2026-11-21T05:00:00Z", "feed", "timed out", "no placement moves"):
        assert part in message
    assert complaint(own_prices([item]), "c8g") is None


def test_a_price_confirmed_again_and_again_is_not_a_write_each_time(make_class: Make) -> None:
    old = in_status(price([make_class("c8g")], Quotes({SPOT: (quote("0.2", timedelta(hours=1)),)}), NOW).of("c8g"))
    soon = in_status(price([make_class("c8g")], Quotes({SPOT: (quote("0.2"),)}), NOW).of("c8g"))
    assert settled_prices(old, soon) == old
    moved = in_status(price([make_class("c8g")], Quotes({SPOT: (quote("0.21"),)}), NOW).of("c8g"))
    assert settled_prices(old, moved) == moved
    older = in_status(price([make_class("c8g")], Quotes({SPOT: (quote("0.2", timedelta(hours=3)),)}), NOW).of("c8g"))
    assert settled_prices(older, soon) == soon, "renewed long before it counts as stale after a restart"


@given(
    offered=st.lists(
        st.tuples(st.decimals(allow_nan=True, allow_infinity=True), st.integers(-(10**5), 10**6)), max_size=3
    ),
    last=st.none() | st.tuples(st.decimals("0.02", "2", places=3), st.integers(0, 10**6)),
)
def test_whatever_feeds_say_a_price_is_sane_and_names_where_it_is_from(
    offered: list[tuple[Decimal, int]], last: tuple[Decimal, int] | None
) -> None:
    made = HardwareClass.model_validate(
        {
            "metadata": {"name": "c8g"},
            "spec": {
                "vendor": "AWS",
                "chip": "c",
                "kind": "CPU",
                "architecture": "arm64",
                "cpus": 4,
                "memoryGiB": 8,
                "memoryBandwidthGBps": 100,
                "capacity": [{"type": "Spot", "usdPerHour": "0.255"}],
                "runtime": {"name": "Berth"},
            },
            "status": {
                "prices": [
                    {
                        "type": "Spot",
                        "usdPerHour": f"{last[0]:f}",
                        "source": "last",
                        "asOf": (NOW - timedelta(seconds=last[1])).isoformat(),
                    }
                ]
                if last
                else []
            },
        }
    )
    quotes = [Quote(usd, "feed", NOW - timedelta(seconds=age)) for usd, age in offered]
    found = in_force(made, *quotes)
    assert found.source in {"feed", "last", "HardwareClass"}
    assert Decimal("0.01275") <= found.usd_per_hour <= Decimal("2.55")
    assert found.stale == (found.as_of is not None and NOW - found.as_of > POLICY.max_age)
