"""Do rollouts keep serving, stop where they fail with the worker's own words, and pass through the fleet in turns?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

LAST_WORDS = "berth-worker: --model: s3://models/x.gguf: found no such file: correct spec.model.source"


@pytest.fixture(scope="module")
def operator(make_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    """An operator that lets one pool move at a time."""
    process = make_operator("--debounce=200ms", "--interval=1s", "--max-moves=1")
    process.start()
    return process


def _spec(version: str) -> dict[str, Any]:
    """On Graviton nodes on demand; the version is in the pod template."""
    return {
        "placement": {"hardware": {"allow": {"names": ["graviton4"]}}, "spot": {"maxTrafficPercent": 0}},
        "worker": {"annotations": {"version": version}},
    }


@contextmanager
def _no_room_for_more(fleet: Fleet, namespace: str) -> Iterator[None]:
    """Workers stay where they are, and no more get a node."""
    graviton = "--selector=node.kubernetes.io/instance-type=c8g.4xlarge"
    nodes = {node["metadata"]["name"] for node in fleet.cluster.get("nodes", graviton)["items"]}
    used = {pod["spec"].get("nodeName") for pod in fleet.cluster.get("pods", f"--namespace={namespace}")["items"]}
    fleet.cluster.kubectl("cordon", *sorted(nodes - used))
    try:
        yield
    finally:
        fleet.cluster.kubectl("uncordon", *sorted(nodes - used))


def _pods(fleet: Fleet, namespace: str, pool: str, version: str) -> list[dict[str, Any]]:
    items = fleet.cluster.get("pods", f"--namespace={namespace}", f"--selector=berth.dev/pool={pool}")["items"]
    return [p for p in items if p["metadata"].get("annotations", {}).get("version") == version]


def _ready(pods: list[dict[str, Any]]) -> int:
    conditions = [c for pod in pods for c in pod["status"].get("conditions", [])]
    return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _refuse_to_start(fleet: Fleet, namespace: str, pod: str) -> None:
    """What a kubelet reports of a worker that ends with exit code 2 again and again."""
    ended = {"exitCode": 2, "reason": "Error", "message": f"loading\n{LAST_WORDS}\n"}
    status = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [
            {
                "name": "worker",
                "image": "berth-worker",
                "imageID": "",
                "ready": False,
                "started": False,
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                "lastState": {"terminated": ended},
            }
        ],
    }
    patch = json.dumps({"status": status})
    fleet.cluster.kubectl(
        "patch", "pod", pod, f"--namespace={namespace}", "--subresource=status", "--type=strategic", "-p", patch
    )


def test_a_rollout_that_fails_stops_with_the_old_workers_serving_and_names_the_error_and_the_next_spec_mends_it(
    fleet: Fleet, operator: OperatorProcess, namespace: str
) -> None:
    fleet.pool(namespace, "agents", **_spec("good"))
    fleet.pool(namespace, "other", **_spec("good"))
    for name in ("agents", "other"):
        operator.wait_for(f"{name} is Ready", lambda name=name: fleet.ready(namespace, name))
    with _no_room_for_more(fleet, namespace):  # so that the new worker can be seen before it is ready
        fleet.pool(namespace, "agents", **_spec("bad"))
        (new,) = operator.wait_for("a surge pod is made", lambda: _pods(fleet, namespace, "agents", "bad"))
        fleet.pool(namespace, "other", **_spec("newer"))
        operator.wait_for(
            "the other pool waits its turn",
            lambda: fleet.condition(namespace, "other", "Progressing").get("reason") == "Queued",
        )
        _refuse_to_start(fleet, namespace, new["metadata"]["name"])
        operator.wait_for(
            "the rollout is called failed",
            lambda: fleet.condition(namespace, "agents", "Progressing").get("reason") == "StartRefused",
        )
        progressing = fleet.condition(namespace, "agents", "Progressing")
        assert progressing["status"] == "False"
        assert LAST_WORDS in progressing["message"]
        assert "the workers of before go on serving" in progressing["message"]
        events = fleet.cluster.get("events", f"--namespace={namespace}")["items"]
        (failed,) = [e for e in events if e["reason"] == "RolloutFailed"]
        assert (failed["involvedObject"]["name"], failed["type"]) == ("agents", "Warning")
        assert LAST_WORDS in failed["message"]
        assert fleet.condition(namespace, "agents", "Ready")["status"] == "True"
        assert _ready(_pods(fleet, namespace, "agents", "good")) == 1
        fleet.pool(namespace, "agents", **_spec("good"))
        operator.wait_for("it went back", lambda: not _pods(fleet, namespace, "agents", "bad"))
        operator.wait_for("it is Ready", lambda: fleet.ready(namespace, "agents"))
        assert _ready(_pods(fleet, namespace, "agents", "good")) == 1
    operator.wait_for("the other pool had its turn", lambda: _ready(_pods(fleet, namespace, "other", "newer")) == 1)
    operator.wait_for("it is Ready", lambda: fleet.ready(namespace, "other"))


def test_a_pool_that_waits_its_turn_is_scaled_all_the_same(
    fleet: Fleet, operator: OperatorProcess, namespace: str
) -> None:
    fleet.pool(namespace, "first", **_spec("good"))
    fleet.pool(namespace, "second", **_spec("good"))
    for name in ("first", "second"):
        operator.wait_for(f"{name} is Ready", lambda name=name: fleet.ready(namespace, name))
    with _no_room_for_more(fleet, namespace):
        fleet.pool(namespace, "first", **_spec("new"))
        operator.wait_for("the first moves", lambda: _pods(fleet, namespace, "first", "new"))
        demand = {"class": "Agentic", "demand": {"requestsPerSecond": "60"}}
        fleet.pool(namespace, "second", workload=demand, **_spec("new"))
        operator.wait_for(
            "more workers of the template that it has", lambda: len(_pods(fleet, namespace, "second", "good")) >= 3
        )
        assert _pods(fleet, namespace, "second", "new") == []
    operator.wait_for(
        "all are of the new template",
        lambda: (
            all(fleet.ready(namespace, n) for n in ("first", "second"))
            and not _pods(fleet, namespace, "second", "good")
        ),
        60,
    )
