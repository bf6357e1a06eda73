"""Has every hardware class a node, or could it get one?  Asked of the API server now and then.

One node is enough of an answer, so no list of nodes is ever read: each question is limited to one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

from berth_operator.api import Capacity, HardwareClass
from berth_operator.catalog.matching import unmatched
from berth_operator.catalog.sanity import Fault
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import NODES, Resource

log = logging.getLogger(__name__)

NODE_POOLS: Final = Resource("karpenter.sh", "v1", "nodepools", "NodePool", namespaced=False)


class NodeCheck:
    """Asks again and again.  `faults` names the classes that no node matches; `on_change` hears of changes."""

    def __init__(
        self,
        kube: Kube,
        classes: Callable[[], Iterable[HardwareClass]],
        on_change: Callable[[], None],
        every_s: float = 60.0,
    ) -> None:
        self._kube = kube
        self._classes = classes
        self._on_change = on_change
        self._every_s = every_s
        self._failed = ""
        self.faults: tuple[Fault, ...] = ()

    async def run(self) -> None:
        """Ask until cancelled.  What cannot be asked leaves the last answer, and is said once."""
        while True:
            try:
                faults = await self.ask()
            except ApiError as error:
                if str(error) != self._failed:
                    log.warning("whether hardware classes have nodes cannot be checked: %s", error)
                self._failed = str(error)
            else:
                self._failed = ""
                if faults != self.faults:
                    self.faults = faults
                    self._on_change()
            await asyncio.sleep(self._every_s)

    async def ask(self) -> tuple[Fault, ...]:
        """The classes that no node matches and that no NodePool could make one for.  Raises ApiError."""
        classes = list(self._classes())
        wanted = {_selector(c): c for item in classes for c in item.spec.capacity}
        there = {selector: await self._any_node(selector) for selector in sorted(wanted)}
        pools = await self._node_pools()
        return tuple(unmatched(classes, lambda capacity: there[_selector(capacity)], pools))

    async def _any_node(self, selector: str) -> bool:
        query = {"limit": "1"} | ({"labelSelector": selector} if selector else {})
        try:
            return bool((await self._kube.request("GET", NODES.path(), query=query))["items"])
        except ApiError as error:
            if error.status == HTTPStatus.BAD_REQUEST:  # no label selector: the class is at fault for that already
                return True
            raise

    async def _node_pools(self) -> Sequence[dict[str, Any]]:
        try:
            return (await self._kube.list(NODE_POOLS)).items
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:  # no Karpenter
                return ()
            raise


def _selector(capacity: Capacity) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((capacity.selector or {}).items()))
