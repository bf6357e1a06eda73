"""How do people hear of a decision?  A Kubernetes Event, whose name makes telling it twice impossible."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from berth_operator.api.names import API_VERSION
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import EVENTS, Object

log = logging.getLogger(__name__)

_CONTROLLER: Final = "berth.dev/operator"
_LONGEST_NAME: Final = 253
_LONGEST_MESSAGE: Final = 1024


@dataclass(frozen=True, slots=True)
class Told:
    """What an Event says."""

    kind: str
    """Of ours, that it is about."""
    namespace: str | None
    """Of the object; None for one that lies in no namespace: its Events are in `default`."""
    name: str
    uid: str
    reason: str
    message: str
    warning: bool
    at: str
    """As the API writes times."""
    mark: str
    """Tells this Event of an object from all others; the same one when it is told again."""


@dataclass(slots=True)
class Teller:
    """Posts Events.  One that cannot be posted is logged, and never in the way of anything else."""

    kube: Kube
    _failed: set[int] = field(default_factory=set)

    async def tell(self, told: Told) -> None:
        """Post an Event unless it is there already.  Raises NotLeaderError."""
        name = f"{told.name[: _LONGEST_NAME - 1 - len(told.mark)]}.{told.mark}"
        about = {"apiVersion": API_VERSION, "kind": told.kind, "name": told.name, "uid": told.uid}
        event: Object = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": told.namespace or "default"},
            "involvedObject": about | ({"namespace": told.namespace} if told.namespace else {}),
            "type": "Warning" if told.warning else "Normal",
            "reason": told.reason,
            "message": told.message[:_LONGEST_MESSAGE],
            "source": {"component": "berth-operator"},
            "reportingComponent": _CONTROLLER,
            "firstTimestamp": told.at,
            "lastTimestamp": told.at,
            "count": 1,
        }
        try:
            path = EVENTS.path(event["metadata"]["namespace"])
            await self.kube.request("POST", path, body=event, fenced=True)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                known = error.status in self._failed
                self._failed.add(error.status)
                log.log(logging.DEBUG if known else logging.WARNING, "Event about %s not posted: %s", told.name, error)
