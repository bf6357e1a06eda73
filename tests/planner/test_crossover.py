"""Are cost lines what the arithmetic says, and do they cross where it says?"""

import math
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from berth_operator.api import CapacityType, Effective, InferencePool, Quantization, ServingProfile, resolve
from berth_operator.catalog import CATALOG, hardware_class
from berth_operator.economics.crossover import (
    Busy,
    Crossover,
    Line,
    cheapest,
    concurrencies,
    crossings,
    crossover,
    with_prices,
)
from berth_operator.planner.capacity import Load
from berth_operator.planner.speed import Speed
from hypothesis import given, settings
from hypothesis import strategies as st

MakeProfile = Callable[..., ServingProfile]


def workload(model: str = "tested-model", **spec: Any) -> Effective:
    shape = {"promptTokens": 1000, "outputTokens": 100, "cachedPromptPercent": 90} | spec.pop("shape", {})
    body = {
        "model": {"name": model, "source": "hf://a/b"},
        "workload": {
            "class": "Interactive",
            "shape": shape,
            "demand": {"concurrentSessions": 1, "thinkTime": spec.pop("think", "2s")},
        },
        **spec,
    }
    return resolve(InferencePool.model_validate({"spec": body}).spec)


def lines(found: Crossover) -> dict[str, Line]:
    return {line.hardware_class: line for line in found.lines}


def flat(speed: float = 0.01, most: int = 8) -> Speed:
    """A step takes the same at every concurrency; a prompt's 100 uncached tokens take 10 ms."""
    grid = tuple(range(1, most + 1))
    return Speed(grid, (speed,) * most, (speed,) * most, (0.0,) * most, 10_000, 100_000, estimated=True)


def test_busy_costs_are_price_over_tokens(profile: MakeProfile, hardware: Any) -> None:
    found = crossover(
        workload(), Quantization.INT8, [hardware("a", prices={"OnDemand": "0.72"})], [profile("a")], (1, 8, 16)
    )
    one, eight, sixteen = lines(found)["a"].points
    # One request: 100 tokens of 10 ms and 100 uncached tokens at 10,000/s: 1.01 s a turn, 99.0 tokens/s.
    assert one.busy is not None and eight.busy is not None and sixteen.busy is not None
    assert one.busy.tokens_per_second == pytest.approx(100 / 1.01)
    assert one.busy.usd_per_million_tokens == pytest.approx(0.72 / 3600 * 1e6 / (100 / 1.01))
    # Eight: eight prompts of 10 ms beside 100 steps of 10 ms.
    assert eight.busy.tokens_per_second == pytest.approx(800 / 1.08)
    assert (sixteen.busy.nodes, sixteen.busy.usd_per_million_tokens) == (
        2,
        pytest.approx(eight.busy.usd_per_million_tokens),
    )


def test_prefill_rides_along_where_memory_is_the_limit() -> None:
    load = Load.of(workload())
    bound = flat()
    idle = Speed(**{f: getattr(bound, f) for f in bound.__slots__} | {"idle_seconds": (0.005,) * 8})
    slower, faster = Busy.of(bound, load), Busy.of(idle, load)
    assert slower is not None and faster is not None
    assert faster.turns_per_second[-1] == pytest.approx(8 / 1.0)
    assert slower.turns_per_second[-1] == pytest.approx(8 / 1.08)


def test_objectives_bound_how_many_one_replica_holds() -> None:
    slow_start = Speed((1, 2, 3), (0.01, 0.02, 0.2), (0.01, 0.02, 0.2), (0.0,) * 3, 10_000, 100_000, estimated=True)
    found = Busy.of(slow_start, Load.of(workload(objectives={"interTokenLatencyP99": "50ms"})))
    assert found is not None
    assert found.most == 2


def test_idle_time_never_costs_less_than_the_best_without_and_little_more_when_many_share_it() -> None:
    classes = [hardware_class(CATALOG[name]) for name in ("l4", "h100", "graviton4-c8g-8xl")]
    found = crossover(workload("llama-3.1-8b-instruct"), Quantization.INT8, classes, [], concurrencies(1024))
    for line in found.lines:
        floor = min(p.busy.usd_per_million_tokens for p in line.points if p.busy)
        idle = [p.idle.usd_per_million_tokens for p in line.points if p.idle]
        assert min(idle) >= floor
        assert idle[0] > 2 * floor, "one session cannot fill a node"
        assert idle[-1] == pytest.approx(min(idle), rel=0.5)


def test_a_cheap_node_wins_at_first_and_a_fast_one_in_the_end() -> None:
    classes = [hardware_class(CATALOG[name]) for name in ("graviton4-c8g-4xl", "h100")]
    promise = {"objectives": {"timeToFirstTokenP99": "2s", "interTokenLatencyP99": "100ms"}}
    effective = workload("llama-3.1-8b-instruct", **promise)
    found = crossover(effective, Quantization.INT8, classes, [], concurrencies(256))
    for case in ("busy", "idle"):
        names = [step.name for step in cheapest(found, case)]
        assert names == ["graviton4-c8g-4xl", "h100"]
        (crossing,) = crossings(found, case)
        assert (crossing.first, crossing.then) == ("graviton4-c8g-4xl", "h100")
        assert crossing.concurrency == cheapest(found, case)[1].concurrency


def test_utilisation_multiplies_the_idle_case_alone() -> None:
    classes = [hardware_class(CATALOG["l4"])]
    effective = workload("llama-3.1-8b-instruct")
    full = crossover(effective, Quantization.INT8, classes, [], (8,)).lines[0].points[0]
    half = crossover(effective, Quantization.INT8, classes, [], (8,), utilisation=0.5).lines[0].points[0]
    assert full.idle and half.idle
    assert half.idle.usd_per_million_tokens == pytest.approx(2 * full.idle.usd_per_million_tokens)
    assert half.busy == full.busy


def test_what_has_no_line_says_why() -> None:
    classes = [hardware_class(CATALOG[name]) for name in ("t4", "maia-100", "grace")]
    found = crossover(workload("llama-3.1-70b-instruct"), Quantization.BF16, classes, [], (1,))
    reasons = {item.hardware_class: item.reason for item in found.left_out}
    assert "weights" in reasons["t4"]
    assert reasons["maia-100"] == "it has no price"
    assert not found.lines


def test_a_what_if_price_gives_what_cannot_be_rented_a_line() -> None:
    priced = with_prices([hardware_class(CATALOG["maia-100"])], {"maia-100": Decimal("3.50")})
    found = crossover(workload("llama-3.1-8b-instruct"), Quantization.INT8, priced, [], (1,))
    assert [line.usd_per_hour for line in found.lines] == [Decimal("3.50")]


def test_spot_has_a_line_of_its_own_where_asked(hardware: Any, profile: MakeProfile) -> None:
    item = hardware("a", prices={"OnDemand": "1", "Spot": "0.4"})
    types = (CapacityType.ON_DEMAND, CapacityType.SPOT)
    found = crossover(workload(), Quantization.INT8, [item], [profile("a")], (1,), capacity_types=types)
    assert [line.name for line in found.lines] == ["a", "a (Spot)"]


def test_more_thinking_needs_more_sessions_for_the_same_demand(hardware: Any, profile: MakeProfile) -> None:
    def nodes(think: str) -> int:
        found = crossover(workload(think=think), Quantization.INT8, [hardware("a")], [profile("a")], (1000,))
        idle = found.lines[0].points[0].idle
        assert idle is not None
        return idle.nodes

    assert workload(think="60s").think_time == timedelta(seconds=60)
    assert nodes("60s") < nodes("2s")


@settings(max_examples=30, deadline=None)
@given(most=st.integers(1, 5000))
def test_concurrencies_climb_from_one_to_the_most(most: int) -> None:
    found = concurrencies(most)
    assert (found[0], found[-1]) == (1, most)
    assert list(found) == sorted(set(found))
    assert all(b <= 2 * a for a, b in pairwise(found))


@settings(max_examples=20, deadline=None)
@given(cents=st.integers(1, 2000), factor=st.integers(2, 9), n=st.integers(1, 300))
def test_a_line_scales_with_its_price(hardware: Any, profile: MakeProfile, cents: int, factor: int, n: int) -> None:
    def cost(c: int) -> float:
        item = hardware("a", prices={"OnDemand": f"{c / 100:.2f}"})
        busy = crossover(workload(), Quantization.INT8, [item], [profile("a")], (n,)).lines[0].points[0].busy
        assert busy is not None
        return busy.usd_per_million_tokens

    assert math.isclose(cost(cents * factor), factor * cost(cents), rel_tol=1e-9)
