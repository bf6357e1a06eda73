"""Does another release of the operator serve the same namespaces?  Each says where it works, in one place.

The Lease by which replicas of one release elect a leader says nothing to other releases, which cannot see it.  So the
leader of each keeps a Lease of its own in `default`, with the namespaces that it serves, and reads those of the others.
One that is renewed while we look is alive; what an uninstalled release has left behind is not.  Nobody is fenced: it is
only said.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from berth_operator.cluster.kube import ApiError, Kube, NotLeaderError
from berth_operator.cluster.lease import now_text
from berth_operator.cluster.resources import LEASES

log = logging.getLogger(__name__)

SHARED_NAMESPACE: Final = "default"
"""Where releases find each other: that of Events about what lies in no namespace, too."""
PRESENCE_LABEL: Final = "berth.dev/presence"
SERVES_ANNOTATION: Final = "berth.dev/serves"
"""Namespaces, comma-separated; empty: all."""
_ROUNDS_OF_SILENCE: Final = 3


@dataclass(frozen=True, slots=True)
class Release:
    """An installation of the operator."""

    name: str
    """`namespace/name` of the Lease that its replicas elect a leader by."""
    namespaces: frozenset[str] = frozenset()
    """That it serves; empty: all."""

    def serves(self, namespace: str) -> bool:
        """Whether it writes what is in a namespace."""
        return not self.namespaces or namespace in self.namespaces

    def meets(self, other: Release) -> bool:
        """Whether there may be a namespace that both serve."""
        return not self.namespaces or not other.namespaces or bool(self.namespaces & other.namespaces)


def both_serve(namespace: str, own: Release, others: Iterable[Release]) -> str | None:
    """In words, who serves a namespace beside us; None: nobody.  Every release that does says the same."""
    found = [other.name for other in others if other.serves(namespace)] if own.serves(namespace) else []
    if not found:
        return None
    names = sorted([own.name, *found])
    return (
        f"releases {', '.join(names[:-1])} and {names[-1]} serve this namespace, and undo each other's work where they"
        " are told different things: give each watchNamespaces of its own, or uninstall all but one"
    )


@dataclass(slots=True)
class Presence:
    """One release's word to the others.  `await run()` until cancelled, then `await leave()`."""

    kube: Kube
    own: Release
    leading: Callable[[], bool]
    on_change: Callable[[], None] = lambda: None
    every_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    others: tuple[Release, ...] = ()
    """That are alive, and serve a namespace of ours."""
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By Lease, its resource version and until when it counts as alive."""
    _failed: str = ""

    @property
    def _name(self) -> str:
        return self.own.name.replace("/", ".", 1)

    async def run(self) -> None:
        """Say that we are here, and look who else is; what fails is said once and tried again."""
        while True:
            if self.leading():
                try:
                    await self.look()
                    self._failed = ""
                except (ApiError, NotLeaderError) as error:
                    if str(error) != self._failed and getattr(error, "status", 0) != HTTPStatus.CONFLICT:
                        log.warning("whether other releases serve the same namespaces is not known: %s", error)
                    self._failed = str(error)
            await asyncio.sleep(self.every_s)

    async def look(self) -> None:
        """One round.  Raises ApiError, NotLeaderError."""
        found = (await self.kube.list(LEASES, SHARED_NAMESPACE, labels=PRESENCE_LABEL)).items
        leases = {lease["metadata"]["name"]: lease for lease in found}
        mine = leases.pop(self._name, None)
        path = LEASES.path(SHARED_NAMESPACE, self._name if mine else None)
        await self.kube.request("PUT" if mine else "POST", path, body=self._record(mine), attempts=1, fenced=True)
        alive = [release for name, lease in sorted(leases.items()) if (release := self._alive(name, lease))]
        others = tuple(release for release in alive if release.meets(self.own))
        self._seen = {name: seen for name, seen in self._seen.items() if name in leases}
        if others != self.others:
            for one in others:
                where = ", ".join(sorted(one.namespaces)) or "all namespaces"
                log.warning(
                    "release %s serves %s, and so do we (%s): see ServedByOthers", one.name, where, self.own.name
                )
            if not others:
                log.info("no other release serves namespaces of ours any more")
            self.others = others
            self.on_change()

    async def leave(self) -> None:
        """Take our word back; what is left after a crash is known as dead by its silence."""
        try:
            lease = await self.kube.list(LEASES, SHARED_NAMESPACE, labels=PRESENCE_LABEL)
            for mine in (item["metadata"] for item in lease.items if item["metadata"]["name"] == self._name):
                await self.kube.delete(LEASES, SHARED_NAMESPACE, self._name, uid=mine["uid"])
        except (ApiError, NotLeaderError) as error:
            log.info("Lease %s/%s not removed: %s", SHARED_NAMESPACE, self._name, error)

    def _alive(self, name: str, lease: Mapping[str, Any]) -> Release | None:
        """Whose it is, if it was renewed since we first saw it, and not long ago."""
        version, now = lease["metadata"]["resourceVersion"], self.clock()
        duration = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
        known, until = self._seen.get(name, (version, -math.inf))
        if version != known:
            until = now + max(duration, _ROUNDS_OF_SILENCE * self.every_s)
        self._seen[name] = version, until
        if now >= until:
            return None
        serves = (lease["metadata"].get("annotations") or {}).get(SERVES_ANNOTATION, "")
        return Release(name.replace(".", "/", 1), frozenset(filter(None, serves.split(","))))

    def _record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """What we say, beside what is there."""
        metadata = dict(before["metadata"]) if before else {"name": self._name, "namespace": SHARED_NAMESPACE}
        serves = ",".join(sorted(self.own.namespaces))
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata | {"labels": {PRESENCE_LABEL: "true"}, "annotations": {SERVES_ANNOTATION: serves}},
            "spec": {
                "holderIdentity": self.own.name,
                "leaseDurationSeconds": max(1, math.ceil(_ROUNDS_OF_SILENCE * self.every_s)),
                "renewTime": now_text(),
            },
        }
