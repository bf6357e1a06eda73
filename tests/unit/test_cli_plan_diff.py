"""Does `berth plan --from-cluster` say what would come and go against what runs, and what that costs?"""

import io
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, ServingProfile
from berth_operator.cli.plan_diff import changes, dollars, together
from berth_operator.cli.plan_view import plan_data, print_plan
from berth_operator.planner import RunningPlacement, Snapshot, plan
from rich.console import Console

CHAT = {
    "workload": {
        "class": "Interactive",
        "shape": {"promptTokens": 1000, "cachedPromptPercent": 90},
        "demand": {"requestsPerSecond": "0.2"},
    },
    "model": {"name": "llama-3.1-8b-instruct", "source": "hf://org/name"},
    "objectives": {"timeToFirstTokenP99": "2s", "interTokenLatencyP99": "100ms"},
}


def _pool(name: str, **spec: Any) -> InferencePool:
    return InferencePool.model_validate({"metadata": {"name": name, "namespace": "ns"}, "spec": CHAT | spec})


def _class(name: str, usd: str, **spec: Any) -> HardwareClass:
    body = {
        "vendor": "AWS",
        "chip": name,
        "kind": "CPU",
        "architecture": "arm64",
        "cpus": 16,
        "memoryGiB": 32,
        "memoryBandwidthGBps": 228,
        "compute": {"int8Tops": 11},
        "capacity": [{"type": "OnDemand", "usdPerHour": usd}],
        "runtime": {"name": "Berth"},
    }
    return HardwareClass.model_validate({"metadata": {"name": name}, "spec": body | spec})


def _runs(pool: str, name: str, replicas: int, **rest: Any) -> RunningPlacement:
    return RunningPlacement(f"ns/{pool}", name, CapacityType.ON_DEMAND, replicas, replicas, **rest)


@pytest.fixture
def snapshot(now: datetime) -> Snapshot:
    """`moves` is on dear nodes and goes to the cheap one, `stays` is there, `comes` runs nowhere yet."""
    return Snapshot(
        now,
        tuple(_pool(name) for name in ("comes", "moves", "stays")),
        (_class("cheap", "0.5"), _class("dear", "2")),
        running=(_runs("moves", "dear", 2), _runs("stays", "cheap", 1), _runs("gone", "dear", 4)),
    )


def test_replicas_that_come_and_go_are_counted_and_priced(snapshot: Snapshot) -> None:
    found = changes(plan(snapshot), snapshot)
    assert {key: [str(s) for s in change.steps] for key, change in found.items()} == {
        "ns/comes": ["+1x cheap/OnDemand"],
        "ns/moves": ["+1x cheap/OnDemand", "-2x dear/OnDemand"],
        "ns/stays": [],
    }
    assert [found[f"ns/{name}"].more_usd_per_hour for name in ("comes", "moves", "stays")] == [
        Decimal("0.5"),
        Decimal("-3.5"),
        Decimal(0),
    ]
    assert together(found) == Decimal("-3.0")
    assert str(found["ns/comes"]) == "nothing runs now: +1x cheap/OnDemand; +0.500 USD/h"
    assert str(found["ns/moves"]) == "against what runs now: +1x cheap/OnDemand, -2x dear/OnDemand; -3.500 USD/h"
    assert str(found["ns/stays"]) == "runs now as planned"


def test_table_and_data_show_it_where_it_is_asked_for(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    found = changes(made, snapshot)
    text = io.StringIO()
    print_plan(Console(file=text, width=200), made, snapshot, against=found)
    assert "AGAINST NOW" in text.getvalue() and "-3.000 USD/h" in text.getvalue()
    assert "against what runs now: +1x cheap/OnDemand, -2x dear/OnDemand; -3.500 USD/h" in text.getvalue()
    data = plan_data(made, found)
    moves = next(pool for pool in data["pools"] if pool["name"] == "moves")
    assert moves["moreUsdPerHour"] == "-3.500"
    assert moves["changes"] == [
        {"hardwareClass": "cheap", "capacityType": "OnDemand", "from": 0, "to": 1},
        {"hardwareClass": "dear", "capacityType": "OnDemand", "from": 2, "to": 0},
    ]
    assert data["fleet"]["moreUsdPerHour"] == "-3.000"
    without = io.StringIO()
    print_plan(Console(file=without, width=200), made, snapshot)
    assert "AGAINST NOW" not in without.getvalue()
    assert "changes" not in plan_data(made)["pools"][0]


def test_pools_that_nothing_is_applied_of_have_no_change(now: datetime) -> None:
    strange = {"name": "nobodys", "source": "hf://a/b"}
    pools = (_pool("only", placement={"mode": "Recommend"}), _pool("odd", model=strange))
    snapshot = Snapshot(now, pools, (_class("cheap", "0.5"),), running=(_runs("odd", "cheap", 1),))
    assert changes(plan(snapshot), snapshot) == {}


def test_what_runs_on_a_class_that_is_gone_has_no_price(now: datetime) -> None:
    snapshot = Snapshot(now, (_pool("lost"),), (_class("cheap", "0.5"),), running=(_runs("lost", "sold", 3),))
    (change,) = changes(plan(snapshot), snapshot).values()
    assert [str(s) for s in change.steps] == ["+1x cheap/OnDemand", "-3x sold/OnDemand"]
    assert change.more_usd_per_hour is None
    assert str(change) == "against what runs now: +1x cheap/OnDemand, -3x sold/OnDemand"


def test_replicas_that_share_a_node_are_paid_for_by_the_node(now: datetime) -> None:
    """Five replicas of a class where a node holds four are two nodes."""
    spec = {
        "model": "llama-3.1-8b-instruct",
        "quantization": "Int8",
        "hardwareClass": "dear",
        "runtime": "Berth",
        "resources": {"cpu": "4"},
        "replicasPerNode": 4,
        "points": [
            {"concurrency": 1, "contextTokens": 900, "decodeTokensPerSecond": "15", "interTokenLatencyP99": "80ms"}
        ],
        "prefillTokensPerSecond": "300",
        "kvCacheTokens": 9000,
        "provenance": {"method": "Measured", "source": "a bench"},
    }
    shared = ServingProfile.model_validate({"metadata": {"name": "shared"}, "spec": spec})
    classes, running = (_class("cheap", "0.5"), _class("dear", "2")), (_runs("moves", "dear", 5),)
    snapshot = Snapshot(now, (_pool("moves"),), classes, (shared,), running=running)
    (change,) = changes(plan(snapshot), snapshot).values()
    assert change.now_usd_per_hour == Decimal(4)


@pytest.mark.parametrize(
    ("more", "text"), [("0", "+0.000"), ("-0.0004", "+0.000"), ("1.25", "+1.250"), ("-2", "-2.000")]
)
def test_dollars_have_a_sign(more: str, text: str) -> None:
    assert dollars(Decimal(more)) == text
