"""What keeps a worker's pod from serving?  The scheduler's and the kubelet's words, sorted into few causes.  Pure.

Texts carry no counts that change while nothing else does, so that a cluster of moving nodes wakes nobody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

Object = Mapping[str, Any]

_LONGEST: Final = 300
_COUNTED: Final = re.compile(r"^\d+ (?:node\(s\) )?")
_BAD_IMAGE: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_PULL_ERROR: Final = re.compile(r"^Back-off pulling image .*?: ErrImagePull: ", re.DOTALL)
"""What the kubelet puts before the error between two attempts: stripped, so that the message is the same throughout."""
_BAD_CONTAINER: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_POD_NAMED: Final = re.compile(r'^(?:admission webhook )?pods "[^"]*" is forbidden: ')
_RESTARTS: Final = 2
"""From so many restarts on a worker that is not ready counts as failing: one crash may be a passing fault."""
_START_REFUSED: Final = 2
"""Exit code of berth-worker (and of argparse) for a model or an argument that cannot work: trying again is in vain."""


class Obstacle(StrEnum):
    """Why the scheduler finds no node for a pod."""

    FULL = "Full"
    """Nodes that it may use have no room."""
    SELECTOR = "Selector"
    """No node that is there has the labels asked for."""
    TAINT = "Taint"
    """As SELECTOR, but for nodes that are tainted or cordoned, of which the scheduler does not say what labels they
    have: it asks for taints first."""
    VOLUME = "Volume"
    """A volume is missing, unbound or elsewhere."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A pod without a node."""

    obstacle: Obstacle
    since: datetime
    detail: str
    """The scheduler's reasons, without the numbers of nodes."""


class Fault(StrEnum):
    """Why a worker that has a node does not come up.  Reasons of conditions."""

    IMAGE = "ImagePullFailed"
    CONFIGURATION = "ContainerRefused"
    MEMORY = "OutOfMemory"
    REFUSED = "StartRefused"
    """The worker itself says that model or arguments cannot work (exit code 2)."""
    CRASH = "CrashLoop"


@dataclass(frozen=True, slots=True)
class Failing:
    """A worker that does not come up by itself."""

    fault: Fault
    message: str
    """What the kubelet or the worker said last: one line."""
    since: datetime
    """When it got its node."""


def blocked(pod: Object) -> Blocked | None:
    """What the scheduler says of a pod that it has found no node for; None for others."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") != "Unschedulable" or scheduled.get("status") != "False":
        return None
    since = _time(scheduled.get("lastTransitionTime")) or _time(pod["metadata"].get("creationTimestamp"))
    reasons = _reasons(str(scheduled.get("message", "")))
    return Blocked(_obstacle(reasons), since or datetime.fromtimestamp(0, UTC), _short("; ".join(reasons)))


def failing(pod: Object) -> Failing | None:
    """What keeps the containers of a pod from running; None where nothing is known to."""
    if _condition(pod, "Ready").get("status") == "True" or "deletionTimestamp" in pod["metadata"]:
        return None
    status = pod.get("status", {})
    since = scheduled_at(pod) or datetime.fromtimestamp(0, UTC)
    for item in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if fault := _fault(item):
            kind, message = fault
            return Failing(kind, _short(message), since)
    return None


def scheduled_at(pod: Object) -> datetime | None:
    """When a pod got its node; None for one that has none."""
    scheduled = _condition(pod, "PodScheduled")
    return _time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None


def _fault(status: Object) -> tuple[Fault, str] | None:
    waiting = status.get("state", {}).get("waiting", {})
    reason, message = waiting.get("reason", ""), str(waiting.get("message", ""))
    if reason in _BAD_IMAGE:
        return Fault.IMAGE, f"{status.get('image', '')}: {_PULL_ERROR.sub('', message) or reason}"
    if reason in _BAD_CONTAINER:
        return Fault.CONFIGURATION, message or reason
    ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated") or {}
    code, restarts = ended.get("exitCode", 0), status.get("restartCount", 0)
    said = f"exit code {code}: {last_line(str(ended.get('message', ''))) or 'it said nothing'}"
    if code == _START_REFUSED:
        return Fault.REFUSED, said
    if restarts < _RESTARTS or not ended:
        return None
    if ended.get("reason") == "OOMKilled":
        return Fault.MEMORY, "the kernel ended it: it took more memory than its limit"
    return Fault.CRASH, said


def create_error(deployment_status: Object) -> str | None:
    """Why the API server refuses the pods of a Deployment, without the pod's made-up name; None where it does not."""
    condition = _condition({"status": deployment_status}, "ReplicaFailure")
    if condition.get("status") != "True":
        return None
    return _short(_POD_NAMED.sub("", str(condition.get("message", ""))))


def last_line(text: str) -> str:
    """What a process said last: the message of the last line that has one, be it plain text or JSON."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        parsed = json.loads(lines[-1])
    except ValueError:
        return lines[-1]
    found = parsed.get("message") or parsed.get("msg") if isinstance(parsed, dict) else None
    return str(found or lines[-1])


def _reasons(message: str) -> list[str]:
    """The scheduler's reasons without counts, in order of the alphabet; the message itself where it has none."""
    head = re.split(r"\.?\s*(?:preemption:|no new claims)", message, maxsplit=1)[0]
    _, colon, listed = head.partition("nodes are available:")
    # Taints are shown as {key: value}; a comma inside braces separates nothing.
    parts = re.split(r",\s*(?![^{]*\})", listed if colon else head)
    return sorted({_COUNTED.sub("", part.strip().rstrip(".")) for part in parts if part.strip()})


def _obstacle(reasons: Sequence[str]) -> Obstacle:
    text = "; ".join(reasons).lower()
    if "volume" in text:
        return Obstacle.VOLUME
    taints = [reason for reason in reasons if "taint" in reason or "were unschedulable" in reason]
    selected = [reason for reason in reasons if "affinity/selector" in reason or "no nodes available" in reason]
    if len(taints) + len(selected) < len(reasons):
        return Obstacle.FULL
    return Obstacle.TAINT if taints else Obstacle.SELECTOR


def _condition(pod: Object, kind: str) -> Object:
    return next((c for c in pod.get("status", {}).get("conditions", ()) if c.get("type") == kind), {})


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
