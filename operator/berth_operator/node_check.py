"""Has every hardware class a node, or could it get one?  Asked of the API server now and then.

One node is enough of an answer, so no list of nodes is ever read: each question is limited to one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from berth_operator.api import Capacity, HardwareClass
from berth_operator.catalog.matching import NodesThere, nodes_there, unmatched
from berth_operator.catalog.sanity import Fault
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import NODES, Object, Resource

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
        self._faults: tuple[Fault, ...] = ()
        self._there = NodesThere(asking=every_s > 0)
        self._asked: Mapping[str, int] = {}

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Classes that no node matches, as they are now written."""
        known = self._known
        return tuple(fault for fault in self._faults if fault.name in known)

    @property
    def there(self) -> NodesThere:
        """What is known of classes as they are now written: of one that was edited, nothing until it is asked for."""
        return self._there.of(self._known)

    @property
    def _known(self) -> set[str]:
        return {
            name for name, generation in _generations(self._classes()).items() if self._asked.get(name) == generation
        }

    async def run(self) -> None:
        """Ask until cancelled.  What cannot be asked leaves the last answer, and is said once."""
        while True:
            try:
                classes = list(self._classes())
                faults, there = await self.ask(classes)
            except ApiError as error:
                if str(error) != self._failed:
                    log.warning("whether hardware classes have nodes cannot be checked: %s", error)
                self._failed = str(error)
                self._there = replace(self._there, asking=False)
            else:
                self._failed = ""
                asked = _generations(classes)
                if (faults, there, asked) != (self._faults, self._there, self._asked):
                    self._faults, self._there, self._asked = faults, there, asked
                    self._on_change()
            await asyncio.sleep(self._every_s)

    async def ask(self, classes: Sequence[HardwareClass]) -> tuple[tuple[Fault, ...], NodesThere]:
        """Classes that no node matches and no NodePool could make one for; the same by capacity.  Raises ApiError."""
        wanted = {_selector(c): c for item in classes for c in item.spec.capacity}
        there = {selector: await self._a_node(selector) for selector in sorted(wanted)}
        pools = await self._node_pools()

        def a_node(capacity: Capacity) -> Object | None:
            return there[_selector(capacity)]

        faults = unmatched(classes, lambda capacity: a_node(capacity) is not None, pools)
        return tuple(faults), nodes_there(classes, a_node, pools)

    async def _a_node(self, selector: str) -> Object | None:
        query = {"limit": "1"} | ({"labelSelector": selector} if selector else {})
        try:
            items = (await self._kube.request("GET", NODES.path(), query=query))["items"]
        except ApiError as error:
            if error.status == HTTPStatus.BAD_REQUEST:  # no label selector: the class is at fault for that already
                return {"spec": {}}
            raise
        return items[0] if items else None

    async def _node_pools(self) -> Sequence[dict[str, Any]]:
        try:
            return (await self._kube.list(NODE_POOLS)).items
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:  # no Karpenter
                return ()
            raise


def _generations(classes: Iterable[HardwareClass]) -> dict[str, int]:
    return {item.metadata.name: item.metadata.generation for item in classes}


def _selector(capacity: Capacity) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((capacity.selector or {}).items()))
