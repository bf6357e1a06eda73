"""What does a million tokens cost on each class as concurrency grows, and where do the lines cross?

Two answers for each class and concurrency N, because they differ by a lot:

    busy   N requests are in flight all the time, nobody thinks, arrivals are not random.  A replica that holds b of
           them makes  X(b) = b / (O step(b) + max(0, b S - O idle(b)))  turns a second, with O output tokens, S seconds
           of prefill of a turn's uncached prompt, and idle(b) the part of a step in which prefill rides along for free.
           b is as great as memory and the objectives allow; nodes are whole.
    idle   N sessions think between their turns, each with one turn at a time: the demand N / (think time + turn
           objective) is spread over replicas that keep the p99 objectives by the planner's own queueing model, whole
           nodes are paid whether they are busy or not, and for `utilisation` of the hours alone there is any demand.

Costs are of generated tokens: the price of prompts is in them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np

from berth_operator.api import CapacityType, Effective, HardwareClass, Quantization, RuntimeName, ServingProfile
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.architectures import ARCHITECTURES
from berth_operator.planner.capacity import Load, TooSlow, replica_capacities
from berth_operator.planner.spans import too_large, widths
from berth_operator.planner.speed import Speed, best_profile, estimable, profile_speed, roofline_speed

SECONDS_AN_HOUR = 3600
PER_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Cost:
    """What N of them cost on one class."""

    usd_per_million_tokens: float
    nodes: int
    tokens_per_second: float
    """Generated, of all nodes."""


@dataclass(frozen=True, slots=True)
class Point:
    """One concurrency of one line; None where the class cannot hold it within the objectives."""

    concurrency: int
    busy: Cost | None
    idle: Cost | None


@dataclass(frozen=True, slots=True)
class Line:
    """One class and capacity type."""

    hardware_class: str
    capacity_type: CapacityType
    chip: str
    usd_per_hour: Decimal
    estimated: bool
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """For people: `l4`, `l4 (Spot)`."""
        on_demand = self.capacity_type is CapacityType.ON_DEMAND
        return self.hardware_class if on_demand else f"{self.hardware_class} ({self.capacity_type.value})"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A class that has no line, and why."""

    hardware_class: str
    reason: str


@dataclass(frozen=True, slots=True)
class Crossover:
    """All lines over the same concurrencies."""

    concurrencies: tuple[int, ...]
    lines: tuple[Line, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class Cheapest:
    """From this concurrency on a class is the cheapest, until the next one begins."""

    concurrency: int
    name: str
    usd_per_million_tokens: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """From this concurrency on `then` is cheaper than `first` was before."""

    concurrency: int
    first: str
    then: str


def concurrencies(most: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, ... up to `most`: powers of two and what lies half-way."""
    found = {1, most}
    step = 2
    while step <= most:
        found |= {step, min(most, step * 3 // 2)}
        step *= 2
    return tuple(sorted(found))


def crossover(
    effective: Effective,
    quantization: Quantization,
    classes: Iterable[HardwareClass],
    profiles: Sequence[ServingProfile],
    at: Sequence[int],
    *,
    capacity_types: Sequence[CapacityType] = (CapacityType.ON_DEMAND,),
    utilisation: float = 1.0,
) -> Crossover:
    """Cost lines of a workload's shape and objectives; its demand is replaced by each concurrency in turn.

    `utilisation` (above 0, at most 1) is the share of hours with demand, for the idle case.
    """
    lines: list[Line] = []
    left_out: list[LeftOut] = []
    load = Load.of(effective)
    for hardware in sorted(classes, key=lambda item: item.metadata.name):
        name = hardware.metadata.name
        ways = [c for c in hardware.spec.capacity if c.type in capacity_types and c.usd_per_hour > 0]
        if not ways:
            left_out.append(LeftOut(name, "it has no price"))
            continue
        speed = speed_of(hardware, effective.model, quantization, profiles, load)
        if isinstance(speed, str):
            left_out.append(LeftOut(name, speed))
            continue
        busy = Busy.of(speed.speed, load)
        idle = replica_capacities(speed.speed, [replace(load, sessions=n) for n in at])
        slow = next((found for found in idle if isinstance(found, TooSlow)), None)
        if busy is None or slow:
            left_out.append(LeftOut(name, slow.reason if slow else "one request breaks the objectives"))
            continue
        carried = [found.turns_per_second for found in idle if isinstance(found, ReplicaCapacity)]
        for way in ways:
            span, per_node = speed.nodes_per_replica, speed.replicas_per_node
            price = float(way.usd_per_hour) * span
            points = tuple(
                Point(
                    n,
                    _over(span, busy.cost(n, load, per_node, price)),
                    _over(span, _idle_cost(_demand(effective, n), rate, load, per_node, price / utilisation)),
                )
                for n, rate in zip(at, carried, strict=True)
            )
            lines.append(Line(name, way.type, hardware.spec.chip, way.usd_per_hour, speed.speed.estimated, points))
    return Crossover(tuple(at), tuple(lines), tuple(left_out))


# --- Speed ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """How fast one replica is, and how many share a node or how many nodes it spans."""

    speed: Speed
    replicas_per_node: int
    nodes_per_replica: int = 1


def speed_of(
    hardware: HardwareClass, model: str, quantization: Quantization, profiles: Sequence[ServingProfile], load: Load
) -> Served | str:
    """Speed from a profile, else from a roofline; a sentence where neither is to be had."""
    runtime: RuntimeName = hardware.spec.runtime.name
    profile = best_profile(profiles, model, quantization, hardware.metadata.name, runtime)
    if profile is not None:
        if load.context_tokens > profile.spec.kv_cache_tokens:
            return f"one request of {load.context_tokens} tokens exceeds kvCacheTokens {profile.spec.kv_cache_tokens}"
        speed = profile_speed(profile, load.mean_context_tokens, hardware.spec.runtime)
        return Served(speed, profile.spec.replicas_per_node or 1, profile.spec.nodes_per_replica or 1)
    architecture = ARCHITECTURES.get(model)
    if architecture is None:
        return f"no ServingProfile of {model} on it, and the model is not in the catalogue"
    if objection := estimable(hardware.spec):
        return objection
    over = [1]
    if arithmetic := too_large(hardware.spec, architecture, quantization, load.context_tokens):
        over = widths(hardware.spec, architecture, quantization, load.context_tokens)
        if not over:
            return arithmetic
    nodes = over[0]
    return Served(roofline_speed(hardware.spec, architecture, quantization, load.mean_context_tokens, nodes), 1, nodes)


# --- Busy -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Busy:
    """A replica whose requests never end: throughput by concurrency, as far as memory and objectives allow."""

    most: int
    """Requests in flight on one replica."""
    concurrency: tuple[float, ...]
    turns_per_second: tuple[float, ...]

    @staticmethod
    def of(speed: Speed, load: Load) -> "Busy | None":
        """None where even one request breaks an objective."""
        b = np.array(speed.concurrency, dtype=np.float64)
        step, idle = np.array(speed.step_seconds), np.array(speed.idle_seconds)
        prefill = max(1.0, load.prompt_tokens * (1 - load.cached_share)) / speed.prefill_tokens_per_second
        turn = load.output_tokens * step + np.maximum(0.0, b * prefill - load.output_tokens * idle)
        fits = b * load.context_tokens <= speed.kv_cache_tokens
        holds = (
            fits
            & (np.array(speed.gap_p99_seconds) <= load.gap)
            & (prefill + step <= load.first_token)
            & (turn <= load.turn)
        )
        if not holds[0]:
            return None
        count = len(b) if holds.all() else int(np.argmin(holds))
        rates = b / turn
        return Busy(int(b[count - 1]), tuple(b[:count].tolist()), tuple(rates[:count].tolist()))

    def cost(self, in_flight: int, load: Load, per_node: int, usd_per_hour: float) -> Cost:
        """So many requests over as few replicas as hold them, evenly."""
        replicas = math.ceil(in_flight / self.most)
        nodes = math.ceil(replicas / per_node)
        rate = float(np.interp(in_flight / replicas, self.concurrency, self.turns_per_second))
        return _cost(nodes, usd_per_hour, replicas * rate * load.output_tokens)


# --- Idle -----------------------------------------------------------------------------------------------------------


def _demand(effective: Effective, sessions: int) -> float:
    """Turns a second of so many sessions, as `api.resolve` has it: think time and the turn's objective a cycle."""
    return sessions / (effective.think_time + effective.turn_latency_p99).total_seconds()


def _idle_cost(rate: float, carried: float, load: Load, per_node: int, usd_per_hour: float) -> Cost:
    nodes = math.ceil(math.ceil(rate / carried - 1e-9) / per_node)
    return _cost(nodes, usd_per_hour, rate * load.output_tokens)


def _cost(nodes: int, usd_per_hour: float, tokens_per_second: float) -> Cost:
    return Cost(nodes * usd_per_hour / (tokens_per_second * SECONDS_AN_HOUR) * PER_MILLION, nodes, tokens_per_second)


def _over(span: int, cost: Cost) -> Cost:
    """The cost of replicas, in all the nodes that they span."""
    return replace(cost, nodes=cost.nodes * span)


# --- Where lines cross ----------------------------------------------------------------------------------------------


def cheapest(found: Crossover, case: str) -> list[Cheapest]:
    """Which line is lowest from which concurrency on.  `case` is "busy" or "idle"."""
    out: list[Cheapest] = []
    for index, n in enumerate(found.concurrencies):
        costs = [(cost.usd_per_million_tokens, line.name) for line in found.lines if (cost := _at(line, index, case))]
        if costs and (not out or out[-1].name != min(costs)[1]):
            usd, name = min(costs)
            out.append(Cheapest(n, name, usd))
    return out


def crossings(found: Crossover, case: str) -> list[Crossing]:
    """Every crossing of two lines, by concurrency."""
    out = []
    for i, one in enumerate(found.lines):
        for other in found.lines[i + 1 :]:
            out += _crossings(one, other, found.concurrencies, case)
    return sorted(out, key=lambda c: (c.concurrency, c.first, c.then))


def _crossings(one: Line, other: Line, at: Sequence[int], case: str) -> list[Crossing]:
    out: list[Crossing] = []
    leader: Line | None = None
    for index, n in enumerate(at):
        a, b = _at(one, index, case), _at(other, index, case)
        if a is None or b is None or math.isclose(a.usd_per_million_tokens, b.usd_per_million_tokens, rel_tol=1e-9):
            continue
        now = one if a.usd_per_million_tokens < b.usd_per_million_tokens else other
        if leader is not None and now is not leader:
            out.append(Crossing(n, leader.name, now.name))
        leader = now
    return out


def _at(line: Line, index: int, case: str) -> Cost | None:
    point = line.points[index]
    return point.busy if case == "busy" else point.idle


def with_prices(classes: Iterable[HardwareClass], prices: Mapping[str, Decimal]) -> list[HardwareClass]:
    """Classes with other prices on demand, for what-if questions."""
    return [_priced(item, prices[item.metadata.name]) if item.metadata.name in prices else item for item in classes]


def _priced(hardware: HardwareClass, usd_per_hour: Decimal) -> HardwareClass:
    first = hardware.capacity_of(CapacityType.ON_DEMAND) or hardware.spec.capacity[0]
    changed = first.model_copy(update={"type": CapacityType.ON_DEMAND, "usd_per_hour": usd_per_hour, "max_nodes": None})
    others = [c for c in hardware.spec.capacity if c is not first and c.type is not CapacityType.ON_DEMAND]
    spec = hardware.spec.model_copy(update={"capacity": [changed, *others]})
    return hardware.model_copy(update={"spec": spec})
