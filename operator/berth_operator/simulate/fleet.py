"""What runs, what is still starting, and what is already leaving?  One pool's replicas over time.

A replica costs from the moment its node is asked for, serves once it has started, and leaves when the replicas that
replace it serve: make before break.  Times are hours from the start.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from berth_operator.simulate.market import Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """What a replica of a pool is on one class and capacity type."""

    resource: Resource
    turns_per_second: float
    """Within the objectives; 0 where it can never keep them."""
    replicas_per_node: int
    start_hours: float
    nodes_per_replica: int = 1

    def nodes(self, replicas: int) -> int:
        """Whole nodes of so many replicas."""
        return math.ceil(replicas / self.replicas_per_node) * self.nodes_per_replica


@dataclass(slots=True)
class Batch:
    """Replicas that were started together."""

    kind: Kind
    replicas: int
    launched: float
    ready: float
    end: float = math.inf


@dataclass(frozen=True, slots=True)
class Served:
    """What a stretch of time came to."""

    turns: float
    within: float
    """Turns within the objectives."""
    node_hours: Mapping[Resource, float]


@dataclass(slots=True)
class PoolFleet:
    """The replicas of one pool."""

    batches: list[Batch] = field(default_factory=list)

    def wanted(self) -> dict[Resource, int]:
        """Replicas that are to stay, ready or starting."""
        out: dict[Resource, int] = {}
        for batch in self.batches:
            if batch.end == math.inf:
                out[batch.kind.resource] = out.get(batch.kind.resource, 0) + batch.replicas
        return out

    def ready(self, now: float) -> dict[Resource, int]:
        """Replicas that are to stay and serve."""
        out: dict[Resource, int] = {}
        for batch in self.batches:
            if batch.end == math.inf and batch.ready <= now:
                out[batch.kind.resource] = out.get(batch.kind.resource, 0) + batch.replicas
        return out

    def nodes(self, resource: Resource, now: float) -> int:
        """Nodes in use of a class and capacity type."""
        live = [b for b in self.batches if b.kind.resource == resource and b.end > now]
        return live[0].kind.nodes(sum(b.replicas for b in live)) if live else 0

    def resources(self, now: float) -> set[Resource]:
        """Classes and capacity types with replicas, leaving ones included."""
        return {b.kind.resource for b in self.batches if b.end > now}

    def interrupt(self, resource: Resource, nodes: int, now: float) -> int:
        """Take nodes away at once; returns how many there were to take, or are given back with them.

        A replica that spans nodes is lost with any of them.
        """
        live = [b for b in self.batches if b.kind.resource == resource and b.end > now]
        if not live:
            return 0
        per_node, before = live[0].kind.replicas_per_node, self.nodes(resource, now)
        left = nodes * per_node
        for batch in live:
            taken = min(left, batch.replicas)
            batch.replicas -= taken
            left -= taken
        self.batches = [b for b in self.batches if b.replicas]
        return before - self.nodes(resource, now)

    def steer(self, target: Mapping[Resource, tuple[Kind, int]], now: float, grant: Callable[[Kind, int], int]) -> int:
        """Start and stop replicas towards a target; returns how many were started.

        `grant(kind, replicas)` says how many can be had.  What leaves does so once all that starts is ready, and not at
        all where something was denied.
        """
        self.batches = [b for b in self.batches if b.end > now]
        wanted, started, denied = self.wanted(), 0, False
        for resource, (kind, replicas) in target.items():
            missing = replicas - wanted.get(resource, 0)
            missing -= self._revive(resource, missing)
            if missing > 0:
                granted = grant(kind, missing)
                denied |= granted < missing
                if granted > 0:
                    self.batches.append(Batch(kind, granted, now, now + kind.start_hours))
                    started += granted
        if denied:  # nothing is given up for what could not be had
            return started
        until = max((b.ready for b in self.batches if b.end == math.inf), default=now)
        for resource, count in self.wanted().items():
            self._retire(resource, count - (target[resource][1] if resource in target else 0), max(now, until), now)
        return started

    def run(self, start: float, end: float, demand: float) -> Served:
        """Serve a constant demand (turns/s) from `start` to `end`, hours."""
        moments = {start, end}
        for batch in self.batches:
            moments |= {t for t in (batch.ready, batch.end) if start < t < end}
        turns = within = 0.0
        node_hours: dict[Resource, float] = {}
        for left, right in _pairs(sorted(moments)):
            live: dict[Resource, list[Batch]] = {}
            capacity = 0.0
            for batch in self.batches:
                if batch.launched <= left < batch.end:
                    live.setdefault(batch.kind.resource, []).append(batch)
                    if batch.ready <= left:
                        capacity += batch.replicas * batch.kind.turns_per_second
            for resource, found in live.items():
                nodes = found[0].kind.nodes(sum(b.replicas for b in found))
                node_hours[resource] = node_hours.get(resource, 0.0) + nodes * (right - left)
            seconds = (right - left) * 3600
            turns += demand * seconds
            within += min(demand, capacity) * seconds
        return Served(turns, within, node_hours)

    def _revive(self, resource: Resource, missing: int) -> int:
        """Keep replicas that were about to leave; returns how many."""
        kept = 0
        for batch in [b for b in self.batches if b.kind.resource == resource and b.end != math.inf]:
            take = min(batch.replicas, max(0, missing - kept))
            if take:
                self._split(batch, take).end = math.inf
                kept += take
        return kept

    def _retire(self, resource: Resource, surplus: int, until: float, now: float) -> None:
        """Let the surplus go: what is still starting at once, what serves when its replacement does."""
        mine = [b for b in self.batches if b.kind.resource == resource and b.end == math.inf]
        for batch in sorted(mine, key=lambda b: -b.ready):
            take = min(batch.replicas, max(0, surplus))
            if take:
                self._split(batch, take).end = now if batch.ready > now else until
                surplus -= take

    def _split(self, batch: Batch, replicas: int) -> Batch:
        """So many replicas of a batch as one of their own."""
        if replicas == batch.replicas:
            return batch
        batch.replicas -= replicas
        part = Batch(batch.kind, replicas, batch.launched, batch.ready, batch.end)
        self.batches.append(part)
        return part


def _pairs(moments: list[float]) -> Iterator[tuple[float, float]]:
    return pairwise(moments)
