"""How does a plan differ from what runs now?  Pure: replicas that come and go, and dollars at today's prices."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal

from berth_operator.api import CapacityType, Quantization, RuntimeName, format_decimal
from berth_operator.planner import Placement, Plan, PoolPlan, RunningPlacement, Snapshot
from berth_operator.planner.speed import best_profile

Where = tuple[str, CapacityType]


@dataclass(frozen=True, slots=True)
class Step:
    """Replicas of a pool on one hardware class and capacity type, before and after; never the same."""

    hardware_class: str
    capacity_type: CapacityType
    before: int
    after: int

    def __str__(self) -> str:
        """`+1x l4/Spot`."""
        return f"{self.after - self.before:+d}x {self.hardware_class}/{self.capacity_type.value}"


@dataclass(frozen=True, slots=True)
class Change:
    """What a plan changes of one pool."""

    steps: tuple[Step, ...]
    """In order of class and capacity type; none where it runs as planned."""
    now_usd_per_hour: Decimal | None
    """What runs, at today's prices, whole nodes; None where a class of it is not there any more."""
    usd_per_hour: Decimal
    """The plan."""

    @property
    def more_usd_per_hour(self) -> Decimal | None:
        """What the plan costs more; below zero: less."""
        return None if self.now_usd_per_hour is None else self.usd_per_hour - self.now_usd_per_hour

    def __str__(self) -> str:
        """One sentence without its full stop."""
        if not self.steps:
            return "runs now as planned"
        steps, more = ", ".join(map(str, self.steps)), self.more_usd_per_hour
        now = "nothing runs now" if all(not s.before for s in self.steps) else "against what runs now"
        return f"{now}: {steps}" + ("" if more is None else f"; {dollars(more)} USD/h")


def changes(plan: Plan, snapshot: Snapshot) -> dict[str, Change]:
    """By pool; not of pools that nothing is applied of: those that are not accepted or only recommended for."""
    running: dict[str, dict[Where, RunningPlacement]] = {}
    for one in snapshot.running:
        if one.replicas:
            running.setdefault(one.pool, {})[one.hardware_class, one.capacity_type] = one
    stays = {(one.pool, one.resource) for one in plan.staying}
    return {
        key: _change(pool, running.get(key, {}), {where for at, where in stays if at == key}, snapshot)
        for key, pool in plan.pools.items()
        if pool.not_accepted is None and pool.effective.mode == "Apply"
    }


def together(found: Mapping[str, Change]) -> Decimal | None:
    """What all plans cost more; None where that is not known of one."""
    return _sum([change.more_usd_per_hour for change in found.values()])


def dollars(more: Decimal) -> str:
    """With its sign, to a tenth of a cent."""
    rounded = Decimal(format_decimal(more, 3))
    return f"{rounded + 0:+f}"


def _sum(each: Sequence[Decimal | None]) -> Decimal | None:
    """None where one of them is not known."""
    known = [usd for usd in each if usd is not None]
    return sum(known, Decimal(0)) if len(known) == len(each) else None


def _change(
    pool: PoolPlan, now: Mapping[Where, RunningPlacement], stays: AbstractSet[Where], snapshot: Snapshot
) -> Change:
    """`stays`: what it keeps though it is not planned."""
    planned = {(p.hardware_class, p.capacity_type): p for p in pool.placements}
    kept = [_usd(one, None, pool, snapshot) for where, one in now.items() if where in stays]
    counts = {
        where: (now[where].replicas if where in now else 0, planned[where].replicas if where in planned else 0)
        for where in sorted((now.keys() | planned.keys()) - stays, key=lambda w: (w[0], w[1].value))
    }
    return Change(
        tuple(Step(*where, before, after) for where, (before, after) in counts.items() if before != after),
        _sum([_usd(one, planned.get(where), pool, snapshot) for where, one in now.items()]),
        _sum([*(p.usd_per_hour for p in pool.placements), *kept]) or Decimal(0),
    )


def _usd(one: RunningPlacement, planned: Placement | None, pool: PoolPlan, snapshot: Snapshot) -> Decimal | None:
    """USD/h of what runs: as planned where that is the same, else its whole nodes."""
    if planned and planned.replicas == one.replicas:
        return planned.usd_per_hour
    hardware = next((c for c in snapshot.hardware_classes if c.metadata.name == one.hardware_class), None)
    capacity = hardware.capacity_of(one.capacity_type) if hardware else None
    if hardware is None or capacity is None:
        return None
    if one.capacity_type is CapacityType.RESERVED:
        return Decimal(0)
    each = planned.replicas_per_node if planned else _replicas_per_node(one, pool, snapshot, hardware.spec.runtime.name)
    return -(-one.replicas // each) * one.nodes_per_replica * capacity.usd_per_hour


def _replicas_per_node(one: RunningPlacement, pool: PoolPlan, snapshot: Snapshot, runtime: RuntimeName) -> int:
    formats: Sequence[Quantization] = [one.quantization or pool.effective.quantization]
    if formats[0] is Quantization.ANY:
        formats = [Quantization.INT8, Quantization.BF16, Quantization.INT4]
    for quantization in formats:
        profile = best_profile(
            snapshot.serving_profiles, pool.effective.model, quantization, one.hardware_class, runtime
        )
        if profile:
            return profile.spec.replicas_per_node or 1
    return 1
