"""Which nodes are about to go away?  One watch of all nodes, of each of which only its notice is kept.

A node's status is rewritten every few minutes, and thousands of nodes are not ours: a node is decoded to almost nothing
as it arrives, page by page, and only a change on a node that carries a worker is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.nodes import GONE, Notice, decode_node
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import NODES

log = logging.getLogger(__name__)

_PAGE: Final = 100
_LOOK_SECONDS: Final = 1.0


class NodeWatch:
    """What is known of the nodes that carry workers.  `await watch.run()` until cancelled."""

    def __init__(self, kube: Kube, hosts: Callable[[], Collection[str]], on_change: Callable[[], None]) -> None:
        """`hosts`: the nodes that carry workers now."""
        self._kube = kube
        self._hosts = hosts
        self._on_change = on_change
        self._nodes: Mapping[tuple[str, str], Notice | None]
        self._nodes = self._reflector = Reflector(
            kube,
            NODES,
            decode_node,
            on_change=on_change,
            matters=lambda key: key[1] in hosts(),
            page=_PAGE,
        )
        self._gone: set[str] = set()

    def notice(self, node: str | None) -> Notice | None:
        """The notice of a node; None for one that stays, or of which nothing is known."""
        if node is None:
            return None
        return GONE if node in self._gone else self._nodes.get(("", node))

    async def run(self) -> None:
        """Follow until cancelled.  Where RBAC does not let us, that is said once and no node has a notice."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflector.run(), name="follow nodes")
            group.create_task(self._look_for_missing(), name="look for missing nodes")

    async def _look_for_missing(self) -> None:
        """A worker can be seen before the node that it was bound to: a missing node is asked for before it counts."""
        await self._reflector.wait_synced()
        while True:
            missing = {node for node in self._hosts() if ("", node) not in self._nodes}
            before, self._gone = self._gone, self._gone & missing
            for node in sorted(missing - self._gone):
                try:
                    if not (await self._kube.list(NODES, fields=f"metadata.name={node}")).items:
                        self._gone.add(node)
                except ApiError as error:
                    log.debug("whether node %s is gone: %s", node, error)
            if self._gone != before:
                self._on_change()
            await asyncio.sleep(_LOOK_SECONDS)
