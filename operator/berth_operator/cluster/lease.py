"""Who of several replicas may write?  Leader election by a Lease, with the same record that client-go keeps.

The holder renews; a standby takes over when it has not seen the record change for the Lease's whole duration by its own
clock, so that clocks need not agree.  Our clock counts the time a machine was suspended: a leader that slept too long
knows, when it wakes, that it is none.

A Lease does not fence: a write sent in time can arrive late.  So every write asks `held` before each attempt and gives
up when a standby may lead (`seconds_left`), and carries the resource version that it was decided upon, so that what
arrives after the next leader has written is refused.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import DEPLOYMENTS, LEASES, Object

log = logging.getLogger(__name__)

LEASE_NAME: Final = "berth-operator"


def boot_time() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Lease:
    """One replica's part in the election.  `await lease.run()` until cancelled, then `await lease.release()`."""

    kube: Kube
    namespace: str
    identity: str
    on_change: Callable[[], None] = lambda: None
    name: str = LEASE_NAME
    owner: str | None = None
    """The Deployment that it goes with; None: it stays when the operator is uninstalled."""
    duration_s: float = 10.0
    """How long after its last renewal a leader may be silent before a standby takes over."""
    renew_every_s: float = 2.0
    clock: Callable[[], float] = boot_time
    _valid_until: float = field(default=float("-inf"))
    _seen_version: str = ""
    _seen_at: float = field(default=float("-inf"))
    _expires_at: float = field(default=float("-inf"))
    _told: str = ""
    _owners: list[Object] | None = None
    """Its ownerReferences; None: not asked for yet."""

    def held(self) -> bool:
        """Whether this replica may begin a write now.

        Ends a little before a standby can take over, so that a write in flight lands before the next leader's.
        """
        return self.clock() < self._valid_until

    def seconds_left(self) -> float:
        """How long a write that begins now may take before a standby can lead; 0 or less when it may not begin."""
        return self._valid_until + self._margin_s - self.clock() if self.held() else 0.0

    @property
    def _margin_s(self) -> float:
        return min(2.0, self.duration_s / 5)

    async def run(self) -> None:
        """Acquire and renew for ever; what fails is tried again."""
        while True:
            was = self.held()
            try:
                await asyncio.wait_for(self._round(), self.duration_s / 3)
                if self.held():
                    self._told = ""
            except (ApiError, TimeoutError) as error:
                self._tell(logging.WARNING, f"Lease {self.namespace}/{self.name}: {error or 'no answer'}")
            if self.held() != was:
                self._tell(logging.INFO, f"{self.identity}: {'leading' if self.held() else 'no longer leading'}")
                self.on_change()
            await asyncio.sleep(self.renew_every_s if self.held() else self._look_again_s())

    def _look_again_s(self) -> float:
        """As a standby: often enough to see each renewal soon, and at the moment when the Lease ends."""
        often, ends_in = self.renew_every_s / 2, self._expires_at - self.clock()
        return min(often, ends_in) if ends_in > 0 else often

    async def release(self) -> None:
        """Give the Lease up, so that a standby need not wait for its end."""
        if not self.held():
            return
        self._valid_until = float("-inf")
        try:
            lease = await self.kube.get(LEASES, self.namespace, self.name)
            if lease and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now_text()}
                await self._put(lease)
        except ApiError as error:
            log.info("Lease %s/%s not released: %s", self.namespace, self.name, error)

    async def _round(self) -> None:
        if self._owners is None:
            self._owners = await self._owner()
        started = self.clock()
        lease = await self.kube.get(LEASES, self.namespace, self.name)
        if lease is None:
            lease = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self.name, "namespace": self.namespace, "ownerReferences": self._owners},
                "spec": self._record({}),
            }
            await self._acquire(self.kube.request("POST", LEASES.path(self.namespace), body=lease, attempts=1), started)
            return
        spec = lease.get("spec", {})
        holder, version = spec.get("holderIdentity") or "", lease["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, started
        self._expires_at = self._seen_at + float(spec.get("leaseDurationSeconds") or 0)
        if holder not in ("", self.identity) and started < self._expires_at:
            self._valid_until = float("-inf")
            self._tell(logging.INFO, f"standing by: {holder} leads")
            return
        lease["spec"] = self._record(spec)
        if self._owners:
            lease["metadata"]["ownerReferences"] = self._owners
        await self._acquire(self._put(lease), started)

    async def _owner(self) -> list[Object]:
        """Whom Kubernetes removes it with; nobody where there is no such Deployment, or we may not look."""
        try:
            found = await self.kube.get(DEPLOYMENTS, self.namespace, self.owner) if self.owner else None
        except ApiError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            log.info("Lease %s/%s gets no owner: %s", self.namespace, self.name, error)
            return []
        kind = {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind}
        return [kind | {"name": self.owner, "uid": found["metadata"]["uid"]}] if found else []

    async def _acquire(self, write: Awaitable[Object], started: float) -> None:
        try:
            answer = await write
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return  # another was faster: look again next round
        self._seen_version, self._seen_at = answer["metadata"]["resourceVersion"], started
        self._valid_until = started + self.duration_s - self._margin_s

    def _record(self, before: Object) -> Object:
        mine = before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self.duration_s),
            "acquireTime": before.get("acquireTime") if mine and before.get("acquireTime") else now_text(),
            "renewTime": now_text(),
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if mine or not before else 1),
        }

    async def _put(self, lease: Object) -> Object:
        return await self.kube.request("PUT", LEASES.path(self.namespace, self.name), body=lease, attempts=1)

    def _tell(self, level: int, text: str) -> None:
        log.log(level if text != self._told else logging.DEBUG, text)
        self._told = text


def now_text() -> str:
    """Now, as Leases write times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
