"""What does a pool's status say of its load?  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from berth_operator.api import InferencePool
from berth_operator.api.inference_pool import DemandStatus, ProfileDrift
from berth_operator.api.meta import Facts
from berth_operator.load.demand import Seen


@dataclass(frozen=True, slots=True)
class Troubles:
    """What is wrong with a pool's workers' metrics; empty: nothing."""

    texts: tuple[str, ...] = ()
    """`worker NAME: what was found: what would be right`; does not change while it lasts."""
    lies: bool = False


@dataclass(frozen=True, slots=True)
class LoadFacts:
    """What status shows of a pool's load."""

    demand: DemandStatus | None = None
    drift: tuple[ProfileDrift, ...] = ()
    conditions: Mapping[str, Facts] = field(default_factory=dict)

    @property
    def asleep(self) -> bool:
        """Scaled to zero for want of requests."""
        return self.demand is not None and self.demand.asleep_since is not None


_NO_ACTIVATOR: Final = (
    "spec.scaling.scaleToZeroAfter has no effect, as nothing would wake the pool: set activator.enabled in the chart"
)
NO_LOAD: Final = LoadFacts()


def load_facts(
    pool: InferencePool,
    demand: DemandStatus | None,
    seen: Seen,
    troubles: Troubles,
    drift: Sequence[ProfileDrift],
    *,
    any_ready: bool,
    can_wake: bool,
) -> LoadFacts:
    """The facts of one pool.  `pool`: as in the API.  `any_ready`: it has a ready worker."""
    conditions: dict[str, Facts] = {}
    scaling = pool.spec.scaling
    if scaling and scaling.mode == "Observed":
        conditions["LoadObserved"] = _observed(pool, demand, seen, troubles, any_ready=any_ready)
    if scaling and scaling.scale_to_zero_after is not None and not can_wake:
        conditions["ScalesToZero"] = ("False", "NoActivator", _NO_ACTIVATOR)
    if drift:
        conditions["ProfileDrift"] = _drifted(drift)
    return LoadFacts(demand, tuple(drift), conditions)


def _observed(
    pool: InferencePool, demand: DemandStatus | None, seen: Seen, troubles: Troubles, *, any_ready: bool
) -> Facts:
    if troubles.texts:
        reason = "MetricsRefused" if troubles.lies else "MetricsUnreadable"
        text = "demand rises by what other workers report, and does not fall: " + "; ".join(troubles.texts)
        return ("False", reason, text)
    if demand is not None and demand.asleep_since is not None:
        return ("Unknown", "Asleep", "no worker runs whose load could be observed")
    if not any_ready:
        return ("Unknown", "NoWorker", "no worker is ready whose load could be observed")
    if seen.requests_per_second is None:  # an operator that has just started does not take back what was said
        said = next((c for c in pool.status.conditions or () if c.type == "LoadObserved"), None)
        return (said.status, said.reason, said.message) if said else ("Unknown", "NotYet", "no worker was read yet")
    return ("True", "Observed", "the planned demand follows what workers report")


def _drifted(drift: Sequence[ProfileDrift]) -> Facts:
    texts = [
        f"workers on {d.hardware_class} decode at {d.speed_percent}% of what ServingProfile {d.profile} says"
        for d in drift
    ]
    reason = "SlowerThanProfile" if min(d.speed_percent for d in drift) < 100 else "FasterThanProfile"
    return ("True", reason, "; ".join(texts) + ": `berth explain` prints the profile corrected")
