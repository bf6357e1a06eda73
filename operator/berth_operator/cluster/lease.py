"""Who of several replicas may write?  Leader election by a Lease, with the same record that client-go keeps.

The holder renews; a standby takes over when it has not seen the record change for the Lease's whole duration by its own
clock, so that clocks need not agree.  Our clock counts the time a machine was suspended: a leader that slept too long
knows, when it wakes, that it is none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import LEASES, Object

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
    duration_s: float = 15.0
    renew_every_s: float = 5.0
    clock: Callable[[], float] = boot_time
    _valid_until: float = field(default=float("-inf"))
    _seen_version: str = ""
    _seen_at: float = field(default=float("-inf"))
    _told: str = ""

    def held(self) -> bool:
        """Whether this replica may write now.

        Ends two seconds before a standby can take over, so that a write in flight lands before the next leader's.
        """
        return self.clock() < self._valid_until

    async def run(self) -> None:
        """Acquire and renew for ever; what fails is tried again."""
        while True:
            was = self.held()
            try:
                await asyncio.wait_for(self._round(), self.renew_every_s)
                self._told = ""
            except (ApiError, TimeoutError) as error:
                self._tell(logging.WARNING, f"Lease {self.namespace}/{self.name}: {error or 'no answer'}")
            if self.held() != was:
                log.info("%s: %s", self.identity, "leading" if self.held() else "no longer leading")
                self.on_change()
            await asyncio.sleep(self.renew_every_s if self.held() else min(self.renew_every_s, 2.0))

    async def release(self) -> None:
        """Give the Lease up, so that a standby need not wait for its end."""
        if not self.held():
            return
        self._valid_until = float("-inf")
        try:
            lease = await self.kube.get(LEASES, self.namespace, self.name)
            if lease and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
                await self._put(lease)
        except ApiError as error:
            log.info("Lease %s/%s not released: %s", self.namespace, self.name, error)

    async def _round(self) -> None:
        started = self.clock()
        lease = await self.kube.get(LEASES, self.namespace, self.name)
        if lease is None:
            lease = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": self._record({}),
            }
            await self._acquire(self.kube.request("POST", LEASES.path(self.namespace), body=lease, attempts=1), started)
            return
        spec = lease.get("spec", {})
        holder, version = spec.get("holderIdentity") or "", lease["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, started
        expired = started >= self._seen_at + float(spec.get("leaseDurationSeconds") or 0)
        if holder not in ("", self.identity) and not expired:
            self._valid_until = float("-inf")
            self._tell(logging.INFO, f"standing by: {holder} leads")
            return
        lease["spec"] = self._record(spec)
        await self._acquire(self._put(lease), started)

    async def _acquire(self, write: Awaitable[Object], started: float) -> None:
        try:
            answer = await write
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return  # another was faster: look again next round
        self._seen_version, self._seen_at = answer["metadata"]["resourceVersion"], started
        self._valid_until = started + self.duration_s - 2.0

    def _record(self, before: Object) -> Object:
        mine = before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.duration_s),
            "acquireTime": before.get("acquireTime") if mine and before.get("acquireTime") else _now(),
            "renewTime": _now(),
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if mine or not before else 1),
        }

    async def _put(self, lease: Object) -> Object:
        return await self.kube.request("PUT", LEASES.path(self.namespace, self.name), body=lease, attempts=1)

    def _tell(self, level: int, text: str) -> None:
        log.log(level if text != self._told else logging.DEBUG, text)
        self._told = text


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
