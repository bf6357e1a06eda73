"""Has every hardware class a node, or could it get one?  Asked of the API server now and then.

One node that takes its pods is enough of an answer: more are read, page by page, only until there is one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from berth_operator.api import Capacity, HardwareClass
from berth_operator.api.meta import Toleration
from berth_operator.catalog.matching import NodesThere, Taints, nodes_there, tolerates, unmatched
from berth_operator.catalog.sanity import Fault
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import NODES, Resource

log = logging.getLogger(__name__)

NODE_POOLS: Final = Resource("karpenter.sh", "v1", "nodepools", "NodePool", namespaced=False)
_PAGE: Final = 100
_LOOK_SECONDS: Final = 1.0


class NodeCheck:
    """Asks again and again, and at once of a class that is new or edited; `on_change` hears of changes.

    `faults` names the classes that no node matches.
    """

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
        self._tried: Mapping[str, int] = {}

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
            classes = list(self._classes())
            self._tried = _generations(classes)
            try:
                faults, there = await self.ask(classes)
            except ApiError as error:
                if str(error) != self._failed:
                    log.warning("whether hardware classes have nodes cannot be checked: %s", error)
                self._failed = str(error)
                self._there = replace(self._there, asking=False)
            else:
                self._failed = ""
                if (faults, there, self._tried) != (self._faults, self._there, self._asked):
                    self._faults, self._there, self._asked = faults, there, self._tried
                    self._on_change()
            await self._wait()

    async def _wait(self) -> None:
        end = time.monotonic() + self._every_s
        while (left := end - time.monotonic()) > 0 and _generations(self._classes()) == self._tried:  # noqa: ASYNC110
            await asyncio.sleep(min(left, _LOOK_SECONDS))

    async def ask(self, classes: Sequence[HardwareClass]) -> tuple[tuple[Fault, ...], NodesThere]:
        """Classes that no node matches and no NodePool could make one for; the same by capacity.  Raises ApiError."""
        wanted: dict[str, list[Sequence[Toleration]]] = defaultdict(list)
        for item in classes:
            for capacity in item.spec.capacity:
                wanted[_selector(capacity)].append(capacity.tolerations or ())
        there = {selector: await self._taints(selector, wanted[selector]) for selector in sorted(wanted)}
        pools = await self._node_pools()

        def taints_of(capacity: Capacity) -> Sequence[Taints]:
            return there[_selector(capacity)]

        faults = unmatched(classes, lambda capacity: bool(taints_of(capacity)), pools)
        return tuple(faults), nodes_there(classes, taints_of, pools)

    async def _taints(self, selector: str, wanted: Iterable[Sequence[Toleration]]) -> Sequence[Taints]:
        """Taints of the nodes with these labels, as far as it takes to find one that each who asks tolerates."""
        query = {"limit": "1"} | ({"labelSelector": selector} if selector else {})
        found: dict[tuple[tuple[str, str, str], ...], Taints] = {}
        left = list(wanted)
        while True:
            try:
                page = await self._kube.request("GET", NODES.path(), query=query)
            except ApiError as error:
                if error.status == HTTPStatus.BAD_REQUEST:  # no label selector: the class is at fault for that already
                    return [()]
                raise
            for node in page["items"]:
                taints = node["spec"].get("taints") or ()
                same = tuple(sorted((t["key"], t.get("value") or "", t.get("effect") or "") for t in taints))
                if same not in found:
                    found[same] = taints
                    left = [tolerations for tolerations in left if not tolerates(tolerations, taints)]
            more = page["metadata"].get("continue")
            if not left or not more:
                return list(found.values())
            query |= {"limit": str(_PAGE), "continue": more}

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
