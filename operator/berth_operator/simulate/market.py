"""What does a node cost at each step, can it be had, and how many spot nodes are taken away?

The same seed gives every policy the same prices, shortages and luck: interruptions are quantiles of one draw a step and
class, so that a policy with more nodes of a class loses more of them, and never different ones for chance alone.
"""

import zlib
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from berth_operator.api import CapacityType, HardwareClass
from berth_operator.planner.zones import fullest
from berth_operator.simulate.scenario import Scenario

Resource = tuple[str, CapacityType]
Series = npt.NDArray[np.float64]

_RETURN_DAYS = 3.0
"""Time in which a spot price's deviation from its mean falls to a third (Ornstein-Uhlenbeck)."""
_LEAST_SPOT = 0.05
"""Of on demand."""


class Market:
    """Prices, stock-outs and interruptions of a scenario."""

    def __init__(self, scenario: Scenario, classes: Sequence[HardwareClass]) -> None:
        self._scenario = scenario
        self._classes = {item.metadata.name: item for item in classes}
        self._usd = {
            (name, capacity.type): self._series(item, capacity.type)
            for name, item in self._classes.items()
            for capacity in item.spec.capacity
        }
        self._draws = {
            name: np.random.default_rng([scenario.seed, 7, zlib.crc32(name.encode())]).random(scenario.steps)
            for name in self._classes
        }

    def usd_per_hour(self, resource: Resource, step: int) -> float:
        """Price of one node, as it would be billed; 0 for Reserved."""
        return 0.0 if resource[1] is CapacityType.RESERVED else float(self._usd[resource][step])

    def classes_at(self, step: int) -> tuple[HardwareClass, ...]:
        """Classes with the prices of a step (to a tenth of a cent)."""
        return tuple(self._priced(item, step) for item in self._classes.values())

    def in_stock(self, resource: Resource, step: int) -> bool:
        """Whether new nodes can be had."""
        now = self._scenario.step * step
        return not any(
            out.hardware_class == resource[0]
            and out.capacity_type in (None, resource[1])
            and out.at <= now < out.at + out.lasts
            for out in self._scenario.stock_outs
        )

    def interrupted(self, hardware_class: str, step: int, nodes: int) -> int:
        """How many of so many spot nodes are taken away at the start of a step."""
        capacity = self._classes[hardware_class].capacity_of(CapacityType.SPOT)
        if nodes == 0 or capacity is None:
            return 0
        given = capacity.interruptions_per_hour
        rate = float(self._scenario.spot.interruptions_per_hour if given is None else given)
        chance = 1 - float(np.exp(-rate * self._scenario.step_hours))
        return _binomial_quantile(nodes, chance, float(self._draws[hardware_class][step]))

    def reclaims(self, hardware_class: str, step: int) -> bool:
        """Whether a zone's spot nodes of a class are taken at the start of a step."""
        begin, end = self._scenario.step * step, self._scenario.step * (step + 1)
        return any(r.hardware_class == hardware_class and begin <= r.at < end for r in self._scenario.spot_reclaims)

    def reclaimed(self, hardware_class: str, nodes: int) -> int:
        """How many of a pool's so many spot nodes, spread over their zones, go with one zone."""
        capacity = self._classes[hardware_class].capacity_of(CapacityType.SPOT)
        return fullest(nodes, len(capacity.zones or ()) or 1) if capacity else 0

    def limit(self, resource: Resource) -> int | None:
        """Nodes that there are at all; None: no limit."""
        capacity = self._classes[resource[0]].capacity_of(resource[1])
        return capacity.max_nodes if capacity else 0

    def _priced(self, item: HardwareClass, step: int) -> HardwareClass:
        capacity = [
            c.model_copy(update={"usd_per_hour": Decimal(f"{self._usd[item.metadata.name, c.type][step]:.3f}")})
            for c in item.spec.capacity
        ]
        return item.model_copy(update={"spec": item.spec.model_copy(update={"capacity": capacity})})

    def _series(self, item: HardwareClass, kind: CapacityType) -> Series:
        """USD per hour, [step]."""
        scenario, name = self._scenario, item.metadata.name
        capacity, listed = item.capacity_of(kind), item.capacity_of(CapacityType.ON_DEMAND)
        own = float(capacity.usd_per_hour) if capacity else 0.0
        if kind is CapacityType.SPOT and listed is not None:
            top = float(listed.usd_per_hour) * self._moves(name, CapacityType.ON_DEMAND)
            if scenario.spot.percent is not None:
                own = float(listed.usd_per_hour) * scenario.spot.percent / 100
            return np.asarray(np.clip(own * self._moves(name, kind) * self._walk(name), _LEAST_SPOT * top, top))
        return np.asarray(own * self._moves(name, kind))

    def _moves(self, name: str, kind: CapacityType) -> Series:
        out = np.ones(self._scenario.steps)
        for move in self._scenario.price_moves:
            if (move.hardware_class, move.capacity_type) == (name, kind):
                out[-(-move.at // self._scenario.step) :] *= float(move.times)
        return out

    def _walk(self, name: str) -> Series:
        """Around 1, changing every hour."""
        spot, steps = self._scenario.spot, self._scenario.steps
        if spot.volatility_percent_per_day == 0:
            return np.ones(steps)
        rng = np.random.default_rng([self._scenario.seed, 3, zlib.crc32(name.encode())])
        hours = int(self._scenario.days * 24) + 1
        keep = np.exp(-1 / (24 * _RETURN_DAYS))
        shocks = rng.normal(0.0, spot.volatility_percent_per_day / 100 / np.sqrt(24), hours)
        level = np.zeros(hours)
        for hour in range(1, hours):
            level[hour] = keep * level[hour - 1] + shocks[hour]
        at = (np.arange(steps) * self._scenario.step_hours).astype(int)
        return np.asarray(np.exp(level)[at], dtype=np.float64)


def _binomial_quantile(count: int, chance: float, draw: float) -> int:
    """Smallest k with P(at most k of `count`) >= draw."""
    weight = (1 - chance) ** count
    total, k = weight, 0
    while total < draw and k < count:
        weight *= (count - k) / (k + 1) * chance / (1 - chance)
        total += weight
        k += 1
    return k


def unknown_classes(scenario: Scenario, names: Iterable[str]) -> list[str]:
    """Classes that the scenario's events name and that are not there."""
    every = (scenario.price_moves, scenario.stock_outs, scenario.spot_reclaims)
    events = [event.hardware_class for events in every for event in events]
    known = set(names)
    return sorted({name for name in events if name not in known})
