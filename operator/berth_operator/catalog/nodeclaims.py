"""Of which hardware is a node that Karpenter failed to make?  Its NodeClaim, read as far as that takes.

Karpenter 1.x (`pkg/controllers/nodeclaim/lifecycle/launch.go`): when no instance can be had, it publishes an Event
`InsufficientCapacityError` about the NodeClaim and deletes the NodeClaim; any other failure stands in the condition
Launched, Unknown with a reason, and is tried again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from berth_operator.api import Capacity, CapacityType, HardwareClass
from berth_operator.catalog.nodepools import CAPACITY_TYPE, Requirement

_WORDS: Final = {CapacityType.RESERVED: "reserved", CapacityType.SPOT: "spot", CapacityType.ON_DEMAND: "on-demand"}
"""In the order in which Karpenter tries them where a claim allows several."""
_NOT_YET: Final = frozenset({"", "AwaitingReconciliation"})


@dataclass(frozen=True, slots=True)
class NodeClaim:
    """A node that Karpenter makes or tries to make."""

    name: str
    requirements: tuple[Requirement, ...]
    failed_at: datetime | None = None
    """When its launch failed, other than for want of capacity."""
    failure: str = ""


def read_node_claim(item: Mapping[str, Any]) -> NodeClaim:
    """A `karpenter.sh/v1` NodeClaim as the API server has it.  What cannot be read is left out."""
    metadata = item["metadata"]
    requirements = [
        Requirement(str(r.get("key")), str(r.get("operator")), tuple(map(str, r.get("values") or ())))
        for r in (item.get("spec") or {}).get("requirements") or ()
    ]
    requirements += [Requirement(k, "In", (str(v),)) for k, v in (metadata.get("labels") or {}).items()]
    conditions = (item.get("status") or {}).get("conditions") or ()
    launched: Mapping[str, Any] = next((c for c in conditions if c.get("type") == "Launched"), {})
    failed = launched.get("status") != "True" and launched.get("reason", "") not in _NOT_YET
    return NodeClaim(
        name=metadata["name"],
        requirements=tuple(requirements),
        failed_at=read_time(launched.get("lastTransitionTime")) if failed else None,
        failure=f"{launched.get('reason')}: {launched.get('message')}" if failed else "",
    )


def would_serve(claim: NodeClaim, hardware: HardwareClass, capacity: Capacity) -> bool:
    """Whether the claim's node could have been one of this class and capacity type, and so cannot be had now.

    A claim that several types of instance would do has failed for all of them.
    """
    kinds = next((r for r in claim.requirements if r.key == CAPACITY_TYPE and r.operator == "In"), None)
    if kinds and next((k for k, word in _WORDS.items() if word in kinds.values), None) is not capacity.type:
        return False
    wanted = {"kubernetes.io/arch": hardware.spec.architecture, **(capacity.selector or {})}
    asked = [r for r in claim.requirements if r.key in wanted]
    return all(r.holds(wanted[r.key]) for r in asked)


def read_time(text: object) -> datetime | None:
    """A time as the API has it; None for one that cannot be read or has no offset."""
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else None
