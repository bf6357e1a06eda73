"""What do others say of a pool's children?  Autoscalers that aim at them, gateways that take or refuse their routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from berth_operator.cluster.resources import WORKLOAD_KINDS, Object

_JUDGED: Final = ("Accepted", "ResolvedRefs")


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """A HorizontalPodAutoscaler that sets the replicas of a Deployment or LeaderWorkerSet."""

    namespace: str
    name: str
    kind: str
    target: str


@dataclass(frozen=True, slots=True)
class Parents:
    """What a route's parents, such as Gateways, say of it."""

    accepted: bool = False
    """By one of them at least."""
    refusal: str = ""
    """Of the first that refuses it or cannot resolve what it names: parent, reason and message."""


def decode_autoscaler(item: Object) -> Autoscaler | None:
    """None for one that aims at anything else than what runs workers."""
    metadata, target = item["metadata"], item.get("spec", {}).get("scaleTargetRef", {})
    if target.get("kind") not in WORKLOAD_KINDS:
        return None
    return Autoscaler(metadata["namespace"], metadata["name"], target["kind"], target.get("name", ""))


def parents_of(status: Mapping[str, Any]) -> Parents:
    """From the status of a route, or of the Inference Extension's pool."""
    accepted, refusals = False, []
    for parent in status.get("parents", ()):
        ref = parent.get("parentRef", {})
        name = f"{ref.get('kind', 'Gateway')} {ref.get('name', '')}"
        for condition in parent.get("conditions", ()):
            kind, said = condition.get("type"), condition.get("status")
            accepted = accepted or (kind, said) == ("Accepted", "True")
            if kind in _JUDGED and said == "False":
                refusals.append(f"{name}: {condition.get('reason', kind)}: {condition.get('message', '')}")
    return Parents(accepted, refusals[0] if refusals else "")
