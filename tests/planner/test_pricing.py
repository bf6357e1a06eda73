"""Do the compiled loops of pricing find what plain enumeration finds?  Small random lanes, every rule."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from berth_operator.planner.lanes import Floats, Ints, Lanes, most_replicas_on, served_by, unserved_by
from berth_operator.planner.patterns import Prices, mend, polish
from berth_operator.planner.pricing import LEAST, price
from berth_operator.planner.useful import useful_nodes
from berth_operator.planner.zones import spreads
from hypothesis import given, settings
from hypothesis import strategies as st

OPTIONS, MOST = 5, 3
EVERY = np.array(list(itertools.product(range(MOST + 1), repeat=OPTIONS)))
seeds = st.integers(0, 100_000)
checked = settings(max_examples=60, deadline=None, derandomize=True)


def _lane(seed: int, *, small: bool = False) -> tuple[Lanes, Prices]:
    """One lane of five options under random rules, and prices; `small`: nodes that carry little."""
    rng = np.random.default_rng(seed)
    shape = (1, OPTIONS)
    per_node = rng.choice([1, 1, 2, 3], shape)
    spot = rng.random(shape) < 0.5
    zones = np.where(spot, rng.choice([1, 3], shape), 1)
    share = rng.uniform(0.02, 0.06, shape) if small else rng.uniform(0.05, 0.8, shape)
    price = rng.uniform(0.5, 3.0, shape)
    lanes = Lanes(
        problems=(),
        limits={},
        pool=np.zeros(1, dtype=np.int64),
        options=((),),
        share=share,
        per_node=per_node,
        price=price,
        usd=price,
        most=rng.integers(0, MOST + 1, shape),
        row=np.zeros(shape, dtype=np.int64),
        parts=rng.choice([1, 1, 2], shape),
        weight=np.ones(shape, dtype=np.int64),
        vendor=rng.integers(0, 3, shape),
        spot=spot,
        spot_share=rng.choice([0.0, 0.5, 0.7, 1.0], 1),
        loss_share=1 - rng.choice([0.0, 0.4, 0.7], 1),
        zones=zones,
        spread=(zones > 1).astype(np.int64),
        spreads=np.stack([spreads(MOST, 1), spreads(MOST, 3)]),
        vendor_share=rng.choice([1.0, 0.6, 0.8], 1),
        floor=rng.integers(0, 3, 1),
        least=rng.integers(0, 4, 1),
        most_replicas=rng.choice([10**9, 4, 6], 1),
        budget=rng.choice([np.inf, 5.0], 1),
        odd=np.zeros(1, dtype=np.bool_),
        rows=(),
        unit=np.zeros(0),
        caps=np.zeros(0),
        span=np.ones(shape, dtype=np.int64),
    )
    return lanes, Prices(price * rng.uniform(0.7, 1.5, shape), rng.uniform(5, 50, 1), float(rng.uniform(1, 6)))


def _within(lanes: Lanes) -> Ints:
    """Every pattern of the lane."""
    return np.ascontiguousarray(EVERY[(lanes.most[0] >= EVERY).all(1)])


# --- What patterns serve --------------------------------------------------------------------------------------------


def _flow(lanes: Lanes, replicas: list[int], served: float) -> float:
    """The greatest flow of the share rules, as lanes.py states it."""
    bounded = lanes.vendor_share[0] < 1
    floor = sum(n for n, spot in zip(replicas, lanes.spot[0], strict=True) if not spot) >= lanes.floor[0]
    total = on_spot = 0.0
    for vendor in range(3) if bounded else (None,):
        steady = spot = 0.0
        for k, n in enumerate(replicas):
            if vendor is not None and lanes.vendor[0, k] != vendor:
                continue
            carried, nodes = n * lanes.share[0, k] / lanes.per_node[0, k], -(-n // lanes.per_node[0, k])
            if not lanes.spot[0, k]:
                steady += carried
            elif floor:
                alone = lanes.loss_share[0] * lanes.spreads[lanes.spread[0, k], nodes]
                spot += min(carried, alone * served)
        most = lanes.vendor_share[0] * served if bounded else math.inf
        steady = min(steady, most)
        total, on_spot = total + steady, on_spot + min(spot, most - steady)
    return total + min(on_spot, lanes.spot_share[0] * served)


def _unserved(lanes: Lanes, replicas: list[int]) -> float:
    if _flow(lanes, replicas, 1.0) >= 1 - 1e-9:
        return 0.0
    low, high = 0.0, 1.0  # what flows is concave in what is served
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _flow(lanes, replicas, middle) >= middle - 1e-15 else (low, middle)
    return 1 - low


@given(seed=seeds)
@checked
def test_what_patterns_serve_is_the_greatest_flow_of_their_replicas(seed: int) -> None:
    lanes, _ = _lane(seed)
    nodes = np.random.default_rng(seed).permutation(_within(lanes))[:40]
    lane = np.zeros(len(nodes), dtype=np.int64)
    replicas, served = most_replicas_on(lanes, lane, nodes), served_by(lanes, lane, nodes)
    assert unserved_by(lanes, lane, replicas) == pytest.approx(served.unserved, abs=0)
    for i, mine in enumerate(replicas.tolist()):
        assert served.unserved[i] == pytest.approx(_unserved(lanes, mine), abs=1e-9)
        assert served.missing[i] == max(0, lanes.least[0] - sum(mine))
        spent = float((-(-nodes[i] // lanes.parts[0]) * lanes.usd[0]).sum())
        assert served.allowed[i] == (spent <= lanes.budget[0] and sum(mine) <= lanes.most_replicas[0])


@given(seed=seeds)
@checked
def test_replicas_above_the_maximum_are_the_least_able_that_need_no_node(seed: int) -> None:
    lanes, _ = _lane(seed)
    nodes = np.random.default_rng(seed).permutation(_within(lanes))[:40]
    able = np.argsort(lanes.share[0] / lanes.per_node[0], kind="stable").tolist()
    for mine, replicas in zip(nodes, most_replicas_on(lanes, np.zeros(len(nodes), dtype=np.int64), nodes), strict=True):
        left = mine * lanes.per_node[0]
        for k in able:
            while left.sum() > lanes.most_replicas[0] and left[k] > (mine[k] - 1) * lanes.per_node[0, k] + 1 > 0:
                left[k] -= 1
        assert replicas.tolist() == left.tolist()


def test_lanes_and_shapes_that_there_are_not_are_refused() -> None:
    lanes, _ = _lane(1)
    with pytest.raises(ValueError, match="lanes are 0 to 0, not 1 to 1"):
        served_by(lanes, np.array([1]), np.zeros((1, OPTIONS), dtype=np.int64))
    with pytest.raises(ValueError, match=r"has shape \(1, 5\), not \(1, 4\)"):
        served_by(lanes, np.array([0]), np.zeros((1, OPTIONS - 1), dtype=np.int64))


# --- Better patterns ------------------------------------------------------------------------------------------------


def _cost(lanes: Lanes, prices: Prices, nodes: Ints) -> Floats:
    lane = np.zeros(len(nodes), dtype=np.int64)
    return prices.of(lane, nodes, served_by(lanes, lane, nodes))


def _best(lanes: Lanes, prices: Prices, nodes: Ints, cost: float, most: int, *, exchange: bool) -> float:
    """The cost after the best neighbour, that one's best and so on."""
    for _ in range(most):
        bought = float((nodes * prices.node[0]).sum())
        if not exchange and cost <= bought + 1e-9:
            break
        adds = [k for k in range(OPTIONS) if not (lanes.spot[0, k] and lanes.spot_share[0] <= 0)] + [None]
        tried = []
        for add, take in itertools.product(adds, [*range(OPTIONS), None] if exchange else [None]):
            one = nodes.copy()
            if add is not None:
                one[add] += 1
            if take is not None:
                one[take] -= 1
            if (one >= 0).all() and (one <= lanes.most[0]).all():
                tried.append(one)
        costs = _cost(lanes, prices, np.array(tried))
        if costs.min() >= cost - 1e-9:
            break
        nodes, cost = tried[int(costs.argmin())], float(costs.min())
    return cost


@given(seed=seeds)
@checked
def test_patterns_are_mended_and_polished_by_their_best_neighbour_each_time(seed: int) -> None:
    lanes, prices = _lane(seed)
    nodes = np.random.default_rng(seed).permutation(_within(lanes))[:8]
    lane, cost = np.zeros(len(nodes), dtype=np.int64), _cost(lanes, prices, nodes)
    for exchange in (False, True):
        found, now = polish(lanes, lane, nodes, cost, prices) if exchange else mend(lanes, lane, nodes, prices)
        assert now == pytest.approx(_cost(lanes, prices, found), rel=1e-12)
        for i in np.flatnonzero(np.isfinite(cost)):
            best = _best(lanes, prices, nodes[i], float(cost[i]), 8 if exchange else 3, exchange=exchange)
            assert now[i] == pytest.approx(best, rel=1e-12)


# --- Prices ---------------------------------------------------------------------------------------------------------


@given(seed=seeds, part=st.floats(0.3, 1.5))
@checked
def test_nodes_that_are_of_no_use_are_in_no_cheapest_pattern(seed: int, part: float) -> None:
    lanes, prices = _lane(seed)
    every = _within(lanes)
    cost = _cost(lanes, prices, every)
    ceiling = part * float(cost.min()) + (part > 1) * 1e-6
    one = np.zeros(1, dtype=np.int64)
    times = useful_nodes(lanes, one, prices.node, prices.unserved, np.array([ceiling]))[0]
    assert (times <= lanes.most[0]).all()
    if part > 1 and lanes.most_replicas[0] > MOST * OPTIONS * 3:  # which nodes to leave out is then a choice
        assert cost[(every <= times).all(1)].min() == pytest.approx(cost.min())


def _quantised(lanes: Lanes, prices: Prices, units: int, *, by_vendor: bool) -> tuple[Floats, Ints]:
    """What each pattern costs in units, as pricing.py states it, and the patterns, of the useful nodes."""
    one, q, exactly = np.zeros(1, dtype=np.int64), units + 1, units * (1 + 5e-5)
    times = useful_nodes(lanes, one, prices.node, prices.unserved, np.array([np.inf]))[0]
    spot_share, kind = float(lanes.spot_share[0]), lanes.spread[0]
    replica = np.where(times > 0, np.minimum(lanes.share[0], 1) / lanes.per_node[0], 0)
    floor = int(lanes.floor[0]) if spot_share > 0 and (lanes.spot[0] & (lanes.most[0] > 0)).any() else 0
    least = int(lanes.least[0])
    floor *= (floor - 1) * replica[~lanes.spot[0]].max(initial=0) >= 1 - spot_share - 1e-9
    least *= (least - 1) * replica.max() >= 1 - 1e-9
    wanted = 0 if by_vendor else min(4, max(floor, least))
    floor, least = min(int(lanes.floor[0]), wanted), min(int(lanes.least[0]), wanted)
    if by_vendor:
        floor = least = 0

    def spot_units(alone: float) -> float:
        share = min(alone, spot_share)
        even = abs(share * units - round(share * units)) < 1e-9 and spot_share <= 0.95
        return round(share * units) if even else share * exactly

    rest = max(0, math.ceil((1 - spot_share - 2e-6) * exactly - 1e-7))
    on_spot = min(math.ceil(spot_share * exactly - 1e-7), q - rest)
    of_vendor = min(math.ceil(lanes.vendor_share[0] * exactly - 1e-7), q)

    def gain(k: int, n: int) -> int:
        carried = n * lanes.share[0, k] * exactly
        if lanes.spot[0, k]:
            carried = min(carried, spot_units(lanes.loss_share[0] * (lanes.spreads[kind[k], n] if kind[k] else 1)))
        return max(0, math.ceil(carried - 1e-7))

    def short(v: int) -> float:
        return float(prices.unserved[0]) * max((v - 1) / exactly, LEAST) if v > 0 else 0.0

    patterns = _within(replace(lanes, most=times[None, :]))
    costs = []
    for nodes in patterns.tolist():
        got = [max((gain(k, j) for j in range(1, n + 1)), default=0) for k, n in enumerate(nodes)]
        running = [n * r for n, r in zip(nodes, lanes.per_node[0].tolist(), strict=True)]
        steady_replicas = sum(r for r, s in zip(running, lanes.spot[0], strict=True) if not s)
        spot_replicas = min(sum(running) - steady_replicas, wanted)
        total = 0
        for v in range(3) if by_vendor else (None,):
            mine = [v is None or lanes.vendor[0, k] == v for k in range(OPTIONS)]
            steady = sum(g for g, m, s in zip(got, mine, lanes.spot[0], strict=True) if m and not s)
            spot = min(on_spot, sum(g for g, m, s in zip(got, mine, lanes.spot[0], strict=True) if m and s))
            total += min(of_vendor, steady + spot) if by_vendor else 0
        rests = (
            [(q - total, 0)]
            if by_vendor
            else [
                (q - steady - t, max(floor if t else 0, least - spot_replicas) - steady_replicas)
                for t in range(spot + 1)
            ]
        )
        nodes_cost = sum(n * c for n, c in zip(nodes, prices.node[0].tolist(), strict=True))
        costs.append(nodes_cost + min(short(v) + max(0, m) * prices.missing for v, m in rests))
    return np.array(costs), patterns


@given(seed=seeds, units=st.sampled_from([20, 24, 60]))
@checked
def test_a_price_is_the_least_of_all_patterns_in_units(seed: int, units: int) -> None:
    lanes, prices = _lane(seed)
    one, everything = np.zeros(1, dtype=np.int64), np.array([np.inf])
    found = price(lanes, one, prices.node, prices.unserved, prices.missing, everything, units)
    assert found.below[0]
    assert (found.nodes <= lanes.most).all()
    costs, patterns = _quantised(lanes, prices, units, by_vendor=False)
    mine = (patterns == found.nodes[0]).all(1)
    over = lanes.vendor_share[0] < 1 and found.bound[0] > costs.min() + 1e-9
    if over or not mine.any() or costs[mine][0] > costs.min() + 1e-9:
        by_vendor, patterns = _quantised(lanes, prices, units, by_vendor=True)
        assert lanes.vendor_share[0] < 1
        assert found.bound[0] == pytest.approx(max(costs.min(), by_vendor.min()))
        assert by_vendor[(patterns == found.nodes[0]).all(1)][0] == pytest.approx(by_vendor.min())
    else:
        assert found.bound[0] == pytest.approx(costs.min(), rel=1e-12)
    none = price(lanes, one, prices.node, prices.unserved, prices.missing, found.bound / 2, units)
    assert not none.below[0]
    assert none.bound[0] >= found.bound[0] / 2


@given(seed=seeds, units=st.sampled_from([7, 12]))
@checked
def test_of_small_nodes_no_pattern_is_below_the_price(seed: int, units: int) -> None:
    lanes, prices = _lane(seed, small=True)
    lanes = replace(
        lanes,
        least=np.minimum(lanes.least, 1),
        floor=np.minimum(lanes.floor, 1),
        spreads=np.stack([spreads(60, 1), spreads(60, 3)]),
        most=20 * lanes.most,
    )
    one = np.zeros(1, dtype=np.int64)
    found = price(lanes, one, prices.node, prices.unserved, prices.missing, np.array([np.inf]), units)
    mended, cost = mend(lanes, one, found.nodes, prices)
    polished = polish(lanes, one, mended, cost, prices)[1]
    for part in np.random.default_rng(seed).random((200, OPTIONS)):
        nodes = np.floor(part * (lanes.most[0] + 1)).astype(np.int64)[None, :]
        bettered = polish(lanes, one, nodes, _cost(lanes, prices, nodes), prices)[1]
        assert found.bound[0] <= bettered[0] + 1e-9
    assert np.isinf(cost[0]) or found.bound[0] <= polished[0] + 1e-9
