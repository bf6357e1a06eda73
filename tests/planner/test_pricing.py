"""Do the compiled loops of pricing find what plain enumeration finds?  Small random lanes, every rule."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from berth_operator.planner.lanes import Floats, Ints, Lanes, most_replicas_on, served_by, unserved_by
from berth_operator.planner.patterns import Prices, mend, polish
from berth_operator.planner.pricing import LEAST, TOLERANCE, price
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


class _Quantised:
    """All patterns of a lane in units, as pricing.py states it."""

    def __init__(self, lanes: Lanes, prices: Prices, units: int) -> None:
        one = np.zeros(1, dtype=np.int64)
        self.lanes, self.prices, self.q, self.exactly = lanes, prices, units + 1, units * (1 + 5e-5)
        times = useful_nodes(lanes, one, prices.node, prices.unserved, np.array([np.inf]))[0]
        self.patterns = _within(replace(lanes, most=times[None, :]))
        spot_share = float(lanes.spot_share[0])
        self.rest = max(0, math.ceil((1 - spot_share - 2e-6) * self.exactly - 1e-7))
        self.on_spot = min(math.ceil(spot_share * self.exactly - 1e-7), self.q - self.rest)
        self.of_vendor = min(math.ceil(lanes.vendor_share[0] * self.exactly - 1e-7), self.q)
        self.gains = [[self._gains(k, n) for k, n in enumerate(nodes)] for nodes in self.patterns.tolist()]
        replica = np.where(times > 0, np.minimum(lanes.share[0], 1) / lanes.per_node[0], 0)
        floor = int(lanes.floor[0]) if spot_share > 0 and (lanes.spot[0] & (lanes.most[0] > 0)).any() else 0
        least = int(lanes.least[0])
        floor *= (floor - 1) * replica[~lanes.spot[0]].max(initial=0) >= 1 - spot_share - 1e-9
        least *= (least - 1) * replica.max() >= 1 - 1e-9
        self.wanted = min(4, max(floor, least))

    def _gains(self, k: int, nodes: int) -> int:
        """The most units that up to so many nodes of an option carry."""
        lanes, units = self.lanes, self.q - 1
        most = [0]
        for n in range(1, nodes + 1):
            carried = n * lanes.share[0, k] * self.exactly
            if lanes.spot[0, k]:
                share = min(lanes.loss_share[0] * lanes.spreads[lanes.spread[0, k], n], lanes.spot_share[0])
                even = abs(share * units - round(share * units)) < 1e-9 and lanes.spot_share[0] <= 0.95
                carried = min(carried, round(share * units) if even else share * self.exactly)
            most.append(max(0, math.ceil(carried - 1e-7)))
        return max(most)

    def _bought(self) -> Floats:
        return np.asarray((self.patterns * self.prices.node[0]).sum(1))

    def _short(self, units: Ints | int) -> Floats:
        short = np.maximum((np.asarray(units) - 1) / self.exactly, LEAST)
        return np.where(np.asarray(units) > 0, self.prices.unserved[0] * short, 0.0)

    def costs(self) -> Floats:
        """[pattern], vendors' shares left aside."""
        floor, least = (min(int(n), self.wanted) for n in (self.lanes.floor[0], self.lanes.least[0]))
        found = []
        for nodes, gains in zip(self.patterns, self.gains, strict=True):
            steady, on_spot = (
                sum(g for g, s in zip(gains, self.lanes.spot[0], strict=True) if s == kind) for kind in (False, True)
            )
            running = nodes * self.lanes.per_node[0]
            steadies, spots = int(running[~self.lanes.spot[0]].sum()), int(running[self.lanes.spot[0]].sum())
            t = np.arange(min(on_spot, self.on_spot) + 1)
            lacking = np.maximum(np.where(t > 0, floor, 0), least - min(spots, self.wanted)) - steadies
            missing = np.maximum(lacking, 0) * self.prices.missing
            found.append((self._short(self.q - steady - t) + missing).min())
        return self._bought() + np.array(found)

    def by_vendor(self) -> tuple[Floats, Ints, Ints]:
        """(USD/h, units on spot, pattern) of each way to split patterns, each vendor within its share."""
        cost, spot, pattern = [], [], []
        for i, (bought, gains) in enumerate(zip(self._bought(), self.gains, strict=True)):
            steady = more = 0
            for v in range(3):
                mine = [g for g, of in zip(gains, self.lanes.vendor[0], strict=True) if of == v]
                spots = [s for s, of in zip(self.lanes.spot[0], self.lanes.vendor[0], strict=True) if of == v]
                first = min(self.of_vendor, sum(g for g, s in zip(mine, spots, strict=True) if not s))
                second = min(self.on_spot, sum(g for g, s in zip(mine, spots, strict=True) if s))
                steady, more = steady + first, more + min(second, self.of_vendor - first)
            t = np.arange(more + 1)
            cost.append(bought + self._short(self.q - steady - t))
            spot.append(t)
            pattern.append(np.full(more + 1, i))
        return np.concatenate(cost), np.concatenate(spot), np.concatenate(pattern)


@given(seed=seeds, units=st.sampled_from([20, 24, 60]))
@checked
def test_a_price_is_the_least_of_all_patterns_in_units(seed: int, units: int) -> None:
    lanes, prices = _lane(seed)
    lanes = replace(lanes, vendor_share=np.ones(1))
    one, q = np.zeros(1, dtype=np.int64), _Quantised(lanes, prices, units)
    found = price(lanes, one, prices.node, prices.unserved, prices.missing, np.array([np.inf]), units)
    costs = q.costs()
    assert found.bound[0] == pytest.approx(costs.min(), rel=1e-12)
    assert costs[(q.patterns == found.nodes[0]).all(1)] == pytest.approx(costs.min(), rel=1e-12)
    none = price(lanes, one, prices.node, prices.unserved, prices.missing, found.bound / 2, units)
    assert found.below[0]
    assert not none.below[0]
    assert found.bound[0] / 2 <= none.bound[0]


@given(seed=seeds, units=st.sampled_from([20, 24]))
@checked
def test_where_vendors_are_bounded_a_price_is_the_best_that_a_price_of_spot_says(seed: int, units: int) -> None:
    lanes, prices = _lane(seed)
    lanes = replace(lanes, vendor_share=np.full(1, 0.6))
    one, q = np.zeros(1, dtype=np.int64), _Quantised(lanes, prices, units)
    found = price(lanes, one, prices.node, prices.unserved, prices.missing, np.array([np.inf]), units)
    alone = q.costs().min()
    if served_by(lanes, one, found.nodes).unserved[0] <= TOLERANCE and found.bound[0] == pytest.approx(alone):
        return  # vendors' shares do not bind
    cost, spot, pattern = q.by_vendor()
    over = spot - (q.q - q.rest)

    def dual(price: float) -> float:
        return float((cost + price * over).min())

    low, high = 0.0, float(cost.max())
    for _ in range(200):
        third = (high - low) / 3
        low, high = (low + third, high) if dual(low + third) < dual(high - third) else (low, high - third)
    assert found.bound[0] == pytest.approx(max(alone, dual((low + high) / 2)), rel=1e-7)
    mine = (q.patterns[pattern] == found.nodes[0]).all(1) & (over <= 0)
    assert cost[mine].min() >= dual((low + high) / 2) - 1e-7


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
