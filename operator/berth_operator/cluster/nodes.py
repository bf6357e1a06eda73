"""Is a node about to go away, how, and since when?  By the taints, conditions and marks of those who take nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from berth_operator.cluster.resources import Object

_HANDLER: Final = "aws-node-termination-handler/"
_EVENT_LABEL: Final = f"{_HANDLER}event-id"
_INTERRUPTING_TAINTS: Final = (
    f"{_HANDLER}spot-itn",
    f"{_HANDLER}asg-lifecycle-termination",
    f"{_HANDLER}scheduled-maintenance",
    "cloud.google.com/impending-node-termination",
    "remediator.kubernetes.azure.com/unschedulable",
)
_EMPTYING_TAINTS: Final = (
    f"{_HANDLER}rebalance-recommendation",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",  # before Karpenter 1.0
    "ToBeDeletedByClusterAutoscaler",
)
_UNREACHABLE: Final = "node.kubernetes.io/unreachable"


class Fate(StrEnum):
    """What will become of a node."""

    INTERRUPTED = "Interrupted"
    """Its provider takes it away soon, whatever runs on it."""
    DELETED = "Deleted"
    """Somebody has deleted it, and what it runs is being evicted: taken back, if it is a spot node."""
    EMPTIED = "Emptied"
    """Somebody wants it empty: cordoned, or about to be replaced.  This may be taken back."""
    UNREACHABLE = "Unreachable"
    """Nothing is heard from it.  It may come back."""
    GONE = "Gone"
    """There is no such node any more."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Word that a node is going away."""

    fate: Fate
    mark: str
    """What says so, for people."""
    since: datetime | None = None
    """When it was given, where the node says."""


GONE: Final = Notice(Fate.GONE, "the node is no more")


def decode_node(item: Object) -> Notice | None:
    """The most urgent notice that a node carries; None for one that stays.

    Marks of AWS Node Termination Handler (pkg/node/node.go), Karpenter, cluster-autoscaler, GKE, AKS (node auto-drain),
    the kubelet's graceful node shutdown, and kubectl.
    """
    return min(_notices(item), key=lambda notice: list(Fate).index(notice.fate), default=None)


def _notices(item: Object) -> Iterator[Notice]:
    metadata, spec = item["metadata"], item.get("spec", {})
    if "deletionTimestamp" in metadata:
        yield Notice(Fate.DELETED, "the node is being deleted", parse_time(metadata["deletionTimestamp"]))
    for taint in spec.get("taints") or ():
        key, since = taint.get("key", ""), parse_time(taint.get("timeAdded"))
        if key in _INTERRUPTING_TAINTS:
            yield Notice(Fate.INTERRUPTED, f"taint {key}", since)
        elif key in _EMPTYING_TAINTS:
            yield Notice(Fate.EMPTIED, f"taint {key}", since)
        elif key == _UNREACHABLE:
            yield Notice(Fate.UNREACHABLE, f"taint {key}", since)
    if spec.get("unschedulable"):
        # The handler cordons by default, and says why in a label only.
        event = (metadata.get("labels") or {}).get(_EVENT_LABEL, "")
        if event.startswith("spot-itn"):
            yield Notice(Fate.INTERRUPTED, f"cordoned, label {_EVENT_LABEL}")
        else:
            yield Notice(Fate.EMPTIED, "cordoned")
    for condition in item.get("status", {}).get("conditions") or ():
        since = parse_time(condition.get("lastTransitionTime"))
        match condition.get("type"), condition.get("status"):
            case "Ready", "False" if "node is shutting down" in (condition.get("message") or ""):
                yield Notice(Fate.INTERRUPTED, "condition Ready: the node is shutting down", since)
            case "Ready", "Unknown":
                yield Notice(Fate.UNREACHABLE, "condition Ready: Unknown", since)
            case "VMEventScheduled", "True":
                yield Notice(Fate.INTERRUPTED, "condition VMEventScheduled", since)


def parse_time(text: Any) -> datetime | None:
    """A time as the API server writes it; None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None
