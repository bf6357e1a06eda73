"""How does a price that nobody has confirmed for long move no placement?  The plan, with such moves taken back.

A price is stale when a feed gave it and has not confirmed it within the stated age.  It still counts for what has to
be placed anyway, because an old price is the best there is.  But a pool that runs is not moved onto, or off, hardware
with a stale price to save money; it moves where that serves more demand, as ever.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from berth_operator.api import InferencePool, resolve
from berth_operator.api.inference_pool import Disruption, PlacementPolicy
from berth_operator.planner import Candidate, Plan, PoolPlan, Problem, Snapshot, plan
from berth_operator.prices.quotes import Key, Price

_HELD_FOR: Final = timedelta(days=1)


def plan_priced(snapshot: Snapshot, stale: Mapping[Key, Price], solve: Callable[[Snapshot], Plan] = plan) -> Plan:
    """The plan of a snapshot in which some prices are stale.  Pure; one solve where no stale price matters."""
    planned = solve(snapshot)
    running = _running(snapshot)
    held: dict[str, Problem] = {}
    while True:
        moved = {
            key: _reason(touched, stale)
            for key, found in planned.pools.items()
            if key not in held and (touched := _touched(found, running.get(key, set()), stale))
        }
        if not moved:
            return _explained(planned, snapshot, held)
        held |= moved
        planned = solve(replace(snapshot, pools=tuple(_kept(pool, held, snapshot.now) for pool in snapshot.pools)))


def _running(snapshot: Snapshot) -> dict[str, set[Key]]:
    running: dict[str, set[Key]] = {}
    for placement in snapshot.running:
        if placement.replicas > 0:
            running.setdefault(placement.pool, set()).add((placement.hardware_class, placement.capacity_type))
    return running


def _touched(planned: PoolPlan, running: set[Key], stale: Mapping[Key, Price]) -> list[Key]:
    """Stale-priced hardware that a pool which runs would move onto or off."""
    wanted = {(p.hardware_class, p.capacity_type) for p in planned.placements}
    if not running or not wanted:
        return []
    return sorted((running ^ wanted) & stale.keys())


def _reason(touched: list[Key], stale: Mapping[Key, Price]) -> Problem:
    """Worded without figures that change from plan to plan."""
    name, kind = touched[0]
    as_of = stale[touched[0]].as_of
    since = as_of.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if as_of else "long ago"
    return Problem(
        "StalePrice",
        f"the price of {name} {kind.value} is as of {since} ({stale[touched[0]].source}), too old to move for",
    )


def _kept(pool: InferencePool, held: Mapping[str, Problem], now: datetime) -> InferencePool:
    """A held pool as one that has only just moved: the planner moves it for service alone."""
    if pool.key not in held:
        return pool
    placement = pool.spec.placement or PlacementPolicy()
    disruption = placement.disruption or Disruption()
    disruption = disruption.model_copy(update={"cooldown": _HELD_FOR})
    spec = pool.spec.model_copy(update={"placement": placement.model_copy(update={"disruption": disruption})})
    moved = now.astimezone(UTC).isoformat(timespec="seconds")
    status = pool.status.model_copy(update={"last_move_time": moved})
    return pool.model_copy(update={"spec": spec, "status": status})


def _explained(planned: Plan, snapshot: Snapshot, held: Mapping[str, Problem]) -> Plan:
    """The plan with the true reason where a pool was held, and its own settings back in force."""
    if not held:
        return planned
    specs = {pool.key: pool.spec for pool in snapshot.pools}
    pools = dict(planned.pools)
    for key, problem in held.items():
        found = replace(pools[key], effective=resolve(specs[key]))
        if found.kept and found.kept.reason == "Cooldown":
            old = found.kept.message
            candidates = tuple(_reworded(c, old, problem.message) for c in found.candidates)
            found = replace(found, kept=problem, candidates=candidates)
        pools[key] = found
    return replace(planned, pools=pools)


def _reworded(candidate: Candidate, old: str, new: str) -> Candidate:
    return replace(candidate, reason=candidate.reason.replace(old, new))
