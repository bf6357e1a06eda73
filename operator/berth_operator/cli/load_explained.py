"""What was seen of a pool's load, in words, and the profiles that its workers contradict, corrected?  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from berth_operator.api import InferencePool, InferencePoolStatus, ServingProfile
from berth_operator.api.names import API_VERSION
from berth_operator.load.drift import corrected


def load_sentences(status: InferencePoolStatus) -> Iterator[str]:
    """Where the planned demand comes from, and what contradicts the speeds behind the plan."""
    demand = status.demand
    if demand and demand.source == "Observed" and demand.asleep_since is None:
        yield (
            f"That demand is planned for after what workers report; the spec declares"
            f" {demand.declared_requests_per_second:f} requests a second."
        )
    for drift in status.drift or ():
        yield (
            f"Its workers on {drift.hardware_class} have for long decoded at {drift.speed_percent}% of what"
            f" ServingProfile {drift.profile} says, at about {drift.concurrency} at once."
        )


def corrected_profiles(
    pool: InferencePool, status: InferencePoolStatus, profiles: Iterable[ServingProfile], now: datetime
) -> list[dict[str, Any]]:
    """The profiles that the pool's workers contradict as they should be, ready to apply."""
    by_name = {profile.metadata.name: profile for profile in profiles}
    found = [
        corrected(by_name[drift.profile], drift, pool.key, f"{now:%Y-%m-%d}")
        for drift in status.drift or ()
        if drift.profile in by_name
    ]
    return [
        {
            "apiVersion": API_VERSION,
            "kind": profile.kind,
            "metadata": {"name": profile.metadata.name},
            "spec": profile.spec.to_api(),
        }
        for profile in found
    ]
