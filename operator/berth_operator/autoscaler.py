"""What does Karpenter say of nodes that it could not make?  Followed where its CRDs are installed, found at run time.

Where they are not, one small question a minute is all that it costs.  Karpenter deletes a NodeClaim at once when there
is no capacity, so the last claims are remembered for the Events that name them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from berth_operator.api import HardwareClass
from berth_operator.catalog.nodeclaims import NodeClaim, read_node_claim, read_time, would_serve
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import EVENTS, Resource
from berth_operator.shortage import Refusal

log = logging.getLogger(__name__)

NODE_CLAIMS: Final = Resource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", namespaced=False)
_NO_CAPACITY: Final = "InsufficientCapacityError"
_REMEMBERED: Final = 512
_LONGEST: Final = 300


@dataclass(frozen=True, slots=True)
class Said:
    """An Event about a NodeClaim for which there was no capacity."""

    name: str
    at: datetime | None
    message: str


class Karpenter:
    """Follows NodeClaims and the Events about them.  `await karpenter.run()` until cancelled."""

    def __init__(self, kube: Kube, on_change: Callable[[], None], every_s: float = 60.0) -> None:
        self._kube = kube
        self._every_s = every_s
        self.remembered: OrderedDict[str, NodeClaim] = OrderedDict()
        """The last claims by name, deleted ones too."""
        self._claims = Reflector(kube, NODE_CLAIMS, self._decode, on_change=on_change)
        # Events about what lies in no namespace are in `default`.
        about = f"involvedObject.kind={NODE_CLAIMS.kind},reason={_NO_CAPACITY}"
        self._events = Reflector(kube, EVENTS, decode_event, namespaces=["default"], fields=about, on_change=on_change)

    async def run(self) -> None:
        """Wait until the CRD is there, then follow."""
        said = False
        while not await self._installed():
            if not said:
                log.info("Karpenter's NodeClaims are not followed: its CRDs are not installed")
            said = True
            await asyncio.sleep(self._every_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claims.run())
            group.create_task(self._events.run())

    async def _installed(self) -> bool:
        try:
            found = await self._kube.request("GET", f"/apis/{NODE_CLAIMS.api_version}")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                log.debug("whether Karpenter is installed: %s", error)
            return False
        return any(item["name"] == NODE_CLAIMS.plural for item in found.get("resources", ()))

    def refusals(self, classes: Sequence[HardwareClass]) -> list[Refusal]:
        """What could not be made, by class and capacity type; the API server keeps an Event for an hour."""
        return list(refusals(classes, self.remembered, self._claims.values(), self._events.values()))

    def _decode(self, item: Mapping[str, Any]) -> NodeClaim:
        claim = read_node_claim(item)
        self.remembered[claim.name] = claim
        self.remembered.move_to_end(claim.name)
        while len(self.remembered) > _REMEMBERED:
            self.remembered.popitem(last=False)
        return claim


def decode_event(item: Mapping[str, Any]) -> Said:
    """An Event, written through either of its APIs."""
    about = item.get("involvedObject") or {}
    series = item.get("series") or {}
    times = (series.get("lastObservedTime"), item.get("lastTimestamp"), item.get("eventTime"))
    at = next((found for text in times if text and (found := read_time(text))), None)
    message = str(item.get("message", ""))[:_LONGEST]
    return Said(str(about.get("name")), at, message)


def refusals(
    classes: Sequence[HardwareClass],
    remembered: Mapping[str, NodeClaim],
    claims: Iterable[NodeClaim],
    events: Iterable[Said],
) -> Iterator[Refusal]:
    """Refusals that Events and failed claims amount to."""
    failed = [(claim, claim.failed_at, claim.failure) for claim in claims if claim.failed_at]
    failed += [(remembered[said.name], said.at, said.message) for said in events if said.at and said.name in remembered]
    for claim, at, message in failed:
        for hardware in classes:
            for capacity in hardware.spec.capacity:
                if at and would_serve(claim, hardware, capacity):
                    yield Refusal(hardware.metadata.name, capacity.type, at, f"Karpenter: {message}"[:_LONGEST])
