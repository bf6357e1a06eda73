"""Which kinds of other projects does the API server serve now?  Asked again and again: a CRD may come or go.

Only kinds that the chart allows are asked for, by one small request a group.  Those that are served are followed like
any other child; of those that are not, one line is said and nothing else is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.observe import Child
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import OPTIONAL_CHILDREN, Resource

log = logging.getLogger(__name__)

_FIRST_LIST_SECONDS: Final = 10.0


class Discovery:
    """Keeps `live` to the optional kinds that are served and listed.  `await discovery.run()` until cancelled."""

    def __init__(
        self,
        kube: Kube,
        integrations: Iterable[str],
        follow: Callable[[Resource], Reflector[Child]],
        live: dict[Resource, Reflector[Child]],
        on_change: Callable[[], None],
        every_s: float = 30.0,
        first_list_s: float = _FIRST_LIST_SECONDS,
    ) -> None:
        """`integrations`: keys of OPTIONAL_CHILDREN.  `follow` makes a reflector; it is run here."""
        self._kube = kube
        self._wanted = [resource for name in integrations for resource in OPTIONAL_CHILDREN[name]]
        self._follow = follow
        self._live = live
        self._on_change = on_change
        self._every_s = every_s
        self._first_list_s = first_list_s
        self._following: dict[Resource, tuple[Reflector[Child], asyncio.Task[None]]] = {}
        self._absent: set[Resource] = set()
        self._asked = asyncio.Event()

    @property
    def available(self) -> frozenset[str]:
        """Kinds (`Kind.group`) that are served and listed."""
        return frozenset(resource.group_kind for resource in self._wanted if resource in self._live)

    async def wait_asked(self) -> None:
        """Return once every kind has been asked for, and those that are served are listed or cannot be."""
        await self._asked.wait()

    async def run(self) -> None:
        """Ask until cancelled.  What cannot be asked stays as it was."""
        try:
            while True:
                before = self.available
                try:
                    await self._ask()
                    self._asked.set()
                except ApiError as error:
                    log.debug("which kinds are served cannot be asked: %s", error)
                if self.available != before:
                    self._on_change()
                await asyncio.sleep(self._every_s if self._asked.is_set() else 1.0)
        finally:
            for _, task in self._following.values():
                task.cancel()

    async def _ask(self) -> None:
        begun: list[Reflector[Child]] = []
        for version in dict.fromkeys((resource.group, resource.version) for resource in self._wanted):
            served = await self._served(*version)
            for resource in self._wanted:
                if (resource.group, resource.version) != version:
                    continue
                if resource.plural not in served:
                    self._leave(resource)
                elif resource not in self._following:
                    begun.append(self._begin(resource))
        with suppress(TimeoutError):  # what cannot be listed says why itself, once, and is looked at the next time
            async with asyncio.timeout(self._first_list_s):
                await asyncio.gather(*(reflector.wait_synced() for reflector in begun))
        for resource, (reflector, _) in self._following.items():
            if reflector.synced and resource not in self._live:
                self._live[resource] = reflector
                log.info("%s is served: pools may have one", resource)

    async def _served(self, group: str, version: str) -> set[str]:
        try:
            answer = await self._kube.request("GET", f"/apis/{group}/{version}")
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return set()
            raise
        return {str(resource["name"]) for resource in answer["resources"]}

    def _begin(self, resource: Resource) -> Reflector[Child]:
        reflector = self._follow(resource)
        self._following[resource] = reflector, asyncio.create_task(reflector.run(), name=f"follow {resource}")
        self._absent.discard(resource)
        return reflector

    def _leave(self, resource: Resource) -> None:
        if following := self._following.pop(resource, None):
            following[1].cancel()
            self._live.pop(resource, None)
        if resource not in self._absent:
            self._absent.add(resource)
            log.info(
                "%s of %s is not served: no pool has one until its CRD is installed", resource.kind, resource.group
            )
