"""What does a reflector make of a write's answer that comes after the watch has told of a deletion?"""

from __future__ import annotations

from typing import Any

from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import POOLS


def pool(version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": "agents", "resourceVersion": str(version)}}


def followed() -> Reflector[int]:
    kube: Any = None  # never asked: events are handed in
    return Reflector(kube, POOLS, lambda item: int(item["metadata"]["resourceVersion"]))


def test_a_late_answer_brings_no_deleted_object_back() -> None:
    pools = followed()
    pools._take("", {"type": "ADDED", "object": pool(5)})
    pools._take("", {"type": "DELETED", "object": pool(7)})
    pools.note(pool(6))
    assert list(pools) == []
    pools._take("", {"type": "ADDED", "object": pool(9)})  # made anew
    assert list(pools.values()) == [9]


def test_an_answer_is_there_before_the_watch_brings_it() -> None:
    pools = followed()
    pools._take("", {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "4"}}})
    pools.note(pool(5))
    pools.note(pool(8))
    pools._take("", {"type": "ADDED", "object": pool(5)})
    assert list(pools.values()) == [8]


def test_an_event_told_again_after_the_deletion_brings_no_object_back() -> None:
    pools = followed()
    for kind, version in (("ADDED", 5), ("MODIFIED", 6), ("DELETED", 7), ("ADDED", 5), ("MODIFIED", 6)):
        pools._take("", {"type": kind, "object": pool(version)})
    assert list(pools) == []
