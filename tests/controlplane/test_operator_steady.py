"""Is the operator silent when nothing changes, and is nothing lost when it, or the API server, goes away?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

STEADY_SECONDS = 60


@pytest.fixture(scope="module")
def leader(make_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    process = make_operator("--debounce=200ms", "--interval=2s", "--identity=leader", "--log-format=json")
    process.start()
    return process


@pytest.fixture(scope="module")
def standby(make_operator: Callable[..., OperatorProcess], leader: OperatorProcess) -> OperatorProcess:
    leader.wait_for("it leads", lambda: leader.passes > 0)
    process = make_operator("--debounce=200ms", "--interval=2s", "--identity=standby")
    process.start()
    return process


@pytest.fixture(scope="module")
def pools(fleet: Fleet, leader: OperatorProcess) -> str:
    """The namespace of three pools, all Ready and with nothing left to do."""
    namespace = "steady"
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    fleet.pool(namespace, "agents")
    fleet.pool(namespace, "chat", workload={"class": "Interactive", "demand": {"requestsPerSecond": "3"}})
    fleet.pool(namespace, "nightly", workload={"class": "Batch", "demand": {"requestsPerSecond": "1"}})
    for name in ("agents", "chat", "nightly"):
        leader.wait_for(f"{name} is Ready", lambda name=name: fleet.ready(namespace, name))
    return namespace


def _objects(fleet: Fleet, namespace: str) -> dict[tuple[str, str], Any]:
    """Every object of ours with its resource version: equal means that nobody has written."""
    kinds = "inferencepools,deployments,services,poddisruptionbudgets"
    items = fleet.cluster.get(kinds, f"--namespace={namespace}")["items"]
    items += fleet.cluster.get("hardwareclasses")["items"]
    return {(i["kind"], i["metadata"]["name"]): i["metadata"]["resourceVersion"] for i in items}


@pytest.mark.timeout(STEADY_SECONDS + 120)
def test_in_steady_state_the_loop_passes_and_writes_nothing(
    fleet: Fleet, leader: OperatorProcess, standby: OperatorProcess, pools: str
) -> None:
    objects, mark, passes = _objects(fleet, pools), fleet.cluster.audit_mark(), leader.passes
    end = time.monotonic() + STEADY_SECONDS
    leader.wait_for("the window is over", lambda: time.monotonic() >= end, STEADY_SECONDS + 10)
    assert leader.passes - passes >= STEADY_SECONDS / 2 * 0.8  # one every 2 s, on a busy machine a little fewer
    assert leader.writes(mark) == []
    assert _objects(fleet, pools) == objects
    assert time.time() - leader.metric("berth_last_success_timestamp_seconds") < 10
    assert (
        leader.metric("berth_plans_total", result="error") == leader.metric("berth_plans_total", result="partial") == 0
    )
    # The standby watched all the time, planned nothing, and shows no pool's series.
    assert standby.passes == 0
    assert not [key for key in standby.metrics() if key[0].startswith("berth_pool_")]


def test_the_standby_takes_over_from_a_killed_leader_and_changes_nothing(
    fleet: Fleet, leader: OperatorProcess, standby: OperatorProcess, pools: str
) -> None:
    objects, mark = _objects(fleet, pools), fleet.cluster.audit_mark()
    leader.kill()
    started = time.monotonic()
    standby.wait_for("the standby leads", lambda: standby.passes > 0, 25)
    assert time.monotonic() - started < 15
    standby.wait_for("two passes", lambda: standby.metric("berth_plans_total", result="success") >= 2)
    assert standby.writes(mark) == []
    assert _objects(fleet, pools) == objects


def test_a_new_leader_starts_at_once_after_a_clean_end_and_changes_nothing(
    fleet: Fleet, leader: OperatorProcess, standby: OperatorProcess, pools: str
) -> None:
    objects, mark = _objects(fleet, pools), fleet.cluster.audit_mark()
    assert standby.terminate() == 0
    assert "Traceback" not in standby.log
    leader.start()
    leader.wait_for("it leads again", lambda: leader.metric("berth_plans_total", result="success") >= 2, 10)
    assert leader.writes(mark) == []
    assert _objects(fleet, pools) == objects


def test_the_operator_outlives_its_api_server(fleet: Fleet, leader: OperatorProcess, pools: str) -> None:
    objects = _objects(fleet, pools)
    fleet.cluster.stop("kube-apiserver")
    leader.wait_for("it notices", lambda: "out of reach" in leader.log or "broke off" in leader.log)
    fleet.cluster.start("kube-apiserver")
    assert _objects(fleet, pools).keys() == objects.keys()
    fleet.pool(pools, "late")
    leader.wait_for("a pool made afterwards is served", lambda: fleet.ready(pools, "late"))
    fleet.cluster.kubectl("delete", "namespace", pools, "--wait=false")
