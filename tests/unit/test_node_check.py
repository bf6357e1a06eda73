"""Is a class judged by all nodes that match it, and at once where it is new or edited?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass
from berth_operator.cluster.kube import ApiError
from berth_operator.node_check import NODE_POOLS, NodeCheck

Make = Callable[..., HardwareClass]
Manifest = dict[str, Any]


class _Nodes:
    """An API server of nodes alone, all of which match; it counts what it is asked."""

    def __init__(self, *taints: list[Manifest]) -> None:
        self.nodes = [{"spec": {"taints": found}} for found in taints]
        self.sent: list[int] = []

    async def request(self, _method: str, _path: str, *, query: dict[str, str]) -> Manifest:
        start, size = int(query.get("continue", "0")), int(query["limit"])
        page = self.nodes[start : start + size]
        self.sent.append(len(page))
        more = start + size
        return {"items": page, "metadata": {"continue": str(more)} if more < len(self.nodes) else {}}

    async def list(self, resource: object) -> None:
        assert resource == NODE_POOLS
        raise ApiError(404, "no Karpenter")


def _taint(key: str, value: str = "yes", effect: str = "NoSchedule") -> Manifest:
    return {"key": key, "value": value, "effect": effect}


def _check(nodes: _Nodes, *classes: HardwareClass, every_s: float = 60.0) -> NodeCheck:
    return NodeCheck(nodes, lambda: classes, lambda: None, every_s)  # type: ignore[arg-type]


@pytest.fixture
def tainted(make_class: Make) -> HardwareClass:
    """A class that tolerates one taint."""
    item = make_class()
    capacity = item.spec.capacity[0].to_api() | {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
    return HardwareClass.model_validate(item.to_api() | {"spec": item.spec.to_api() | {"capacity": [capacity]}})


@pytest.mark.parametrize(
    ("taints", "tolerated"),
    [
        ([[_taint("other")], [_taint("gpu")]], True),
        ([[_taint("other"), _taint("gpu")], [_taint("other")]], False),
        ([[_taint("other", str(n))] for n in range(250)] + [[]], True),
        ([[_taint("other")]] * 250, False),
    ],
)
async def test_one_node_of_all_that_tolerates_is_enough(
    tainted: HardwareClass, taints: list[list[Manifest]], tolerated: bool
) -> None:
    nodes = _Nodes(*taints)
    _, there = await _check(nodes).ask([tainted])
    where = tainted.metadata.name, CapacityType.ON_DEMAND
    assert (there.present[where], there.tolerated[where]) == (True, tolerated)
    assert sum(nodes.sent) == len(taints)


async def test_no_more_nodes_are_read_than_it_takes(tainted: HardwareClass) -> None:
    nodes = _Nodes([_taint("gpu")], *[[_taint("other")]] * 5000)
    await _check(nodes).ask([tainted])
    assert nodes.sent == [1]


async def test_a_class_that_is_edited_is_asked_for_at_once(tainted: HardwareClass) -> None:
    known = [tainted]
    nodes = _Nodes([_taint("other")])
    changed = asyncio.Event()
    check = NodeCheck(nodes, lambda: known, changed.set, 3600.0)  # type: ignore[arg-type]
    running = asyncio.create_task(check.run())
    try:
        await asyncio.wait_for(changed.wait(), 30)
        assert check.there.tolerated
        edited = tainted.metadata.model_copy(update={"generation": tainted.metadata.generation + 1})
        changed.clear()
        known[0] = tainted.model_copy(update={"metadata": edited})
        assert not check.there.tolerated  # of what is written now nothing is known yet
        await asyncio.wait_for(changed.wait(), 30)
        assert check.there.tolerated
    finally:
        running.cancel()
