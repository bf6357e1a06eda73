"""Hardware that cannot be had: is it known, said, replaced within objectives, and gone back to?

Everything else that keeps pods from a node is called what it is, and constrains nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

NO_HESITATION = {"disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"}}


@pytest.fixture(scope="module")
def operator(make_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    """An operator that soon loses patience, and soon tries again."""
    flags = ("--shortage-grace=3s", "--shortage-back-off=5s", "--shortage-back-off-max=1m", "--node-check=1s")
    process = make_operator("--debounce=200ms", "--interval=2s", *flags)
    process.start()
    return process


@pytest.fixture(scope="module")
def troubled(fleet: Fleet, operator: OperatorProcess) -> Iterator[str]:
    """A namespace of pools that wait for something else than capacity; they wait while other tests run."""
    namespace = "troubled"
    misspelt = _like(fleet, "l4", "misspelt", selector={"node.kubernetes.io/instance-type": "g6.xlrage"})
    forbidden = _like(fleet, "l4", "forbidden", tolerations=[])
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": f"{namespace}-quota"},
        "spec": {"hard": {"pods": "0"}},
    }
    for name in (namespace, f"{namespace}-quota"):
        fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    fleet.cluster.apply(misspelt, forbidden, quota)
    for name in ("misspelt", "forbidden"):
        fleet.pool(
            namespace, name, placement={"hardware": {"allow": {"names": [name]}}, "spot": {"maxTrafficPercent": 0}}
        )
    fleet.pool(f"{namespace}-quota", "capped")
    yield namespace
    fleet.cluster.kubectl("delete", "namespace", namespace, f"{namespace}-quota", "--wait=false")
    fleet.cluster.kubectl("delete", "hardwareclass", "misspelt", "forbidden")


def _like(fleet: Fleet, original: str, name: str, **capacity: Any) -> dict[str, Any]:
    """A class as another one, but for its capacity; for pools of one namespace only."""
    spec = fleet.cluster.get("hardwareclass", original)["spec"]
    spec["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": "troubled"}}
    spec["capacity"] = [spec["capacity"][0] | capacity]
    return {"apiVersion": "berth.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": name}, "spec": spec}


@contextmanager
def _no_graviton(fleet: Fleet) -> Iterator[None]:
    """No new pod gets a Graviton node."""
    nodes = "--selector=node.kubernetes.io/instance-type=c8g.4xlarge"
    fleet.cluster.kubectl("cordon", nodes)
    try:
        yield
    finally:
        fleet.cluster.kubectl("uncordon", nodes)


def _constrained(fleet: Fleet, name: str = "graviton4") -> dict[str, dict[str, Any]]:
    status = fleet.cluster.get("hardwareclass", name).get("status", {})
    return {entry["type"]: entry for entry in status.get("constrained", [])}


def _class_condition(fleet: Fleet, kind: str, name: str = "graviton4") -> dict[str, Any]:
    conditions = fleet.cluster.get("hardwareclass", name).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


class _Witness:
    """Looks all the time at how many workers of a namespace are ready."""

    def __init__(self, fleet: Fleet, namespace: str) -> None:
        self._look = lambda: len(fleet.nodes(namespace))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.fewest: int | None = None

    def _watch(self) -> None:
        while not self._done.is_set():
            seen = self._look()
            self.fewest = seen if self.fewest is None else min(seen, self.fewest)

    def __enter__(self) -> _Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_a_pool_falls_back_to_gpus_while_cpu_nodes_are_short_and_returns_when_they_are_back(
    fleet: Fleet, operator: OperatorProcess, troubled: str, namespace: str
) -> None:
    with _no_graviton(fleet):
        fleet.pool(namespace, "agents", placement=NO_HESITATION)
        operator.wait_for("the shortage is known", lambda: _constrained(fleet).get("OnDemand"))
        operator.wait_for("GPUs serve", lambda: fleet.nodes(namespace) == ["l4"])
        since = _constrained(fleet)["OnDemand"]["since"]
        with _Witness(fleet, namespace) as witness:
            operator.wait_for("it was tried again in vain", lambda: _constrained(fleet)["OnDemand"]["backOff"] == "10s")
            assert _constrained(fleet)["OnDemand"]["since"] == since
            constrained = operator.wait_for(
                "the pool says so",
                lambda: next(
                    (c for c in [fleet.condition(namespace, "agents", "CapacityConstrained")] if c["status"] == "True"),
                    None,
                ),
            )
            assert constrained["reason"] == "Constrained"
            assert "graviton4 OnDemand" in constrained["message"]
            operator.terminate()
            operator.start()
            operator.wait_for("two passes", lambda: operator.metric("berth_plans_total", result="success") >= 2)
            kept = _constrained(fleet)["OnDemand"]
            assert (kept["since"], kept["backOff"] in ("10s", "20s")) == (since, True)
        assert witness.fewest == 1  # trying, failing and restarting took nothing from those who are served
    with _Witness(fleet, namespace) as witness:
        back = lambda: fleet.nodes(namespace) == ["graviton"] and fleet.ready(namespace, "agents")  # noqa: E731
        operator.wait_for("it is back", back, 60)
    assert witness.fewest == 1
    told = fleet.status(namespace, "agents")["history"]
    assert [decision["reason"] for decision in told] == ["Placed", "FellBack", "Returned"]
    events = fleet.cluster.get("events", f"--namespace={namespace}")["items"]
    ours = [e["reason"] for e in events if e["involvedObject"]["kind"] == "InferencePool"]
    assert sorted(ours) == ["FellBack", "Placed", "Returned"]  # one each, over a restart and a trial in vain
    command = [str(Path(sys.executable).parent / "berth"), "explain", "agents", "--history"]
    command += ["-o", "json", f"--namespace={namespace}", f"--kubeconfig={fleet.cluster.kubeconfig}"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert shown == told
    assert told[1]["message"].startswith("graviton4/OnDemand cannot be had for now: fell back to 1x l4/OnDemand")
    available = _class_condition(fleet, "Available")
    assert (available["status"], available["reason"]) == ("True", "Recovering")


def test_a_cheap_class_that_no_node_matches_is_given_up_and_taken_once_it_is_mended(
    fleet: Fleet, operator: OperatorProcess, troubled: str, namespace: str
) -> None:
    instance = {"node.kubernetes.io/instance-type": "c8g.4xlarge", "karpenter.sh/capacity-type": "on-demand"}
    typed = _like(fleet, "graviton4", "typed", usdPerHour="0.100", selector=instance | {"zone": "eu-wset-1a"})
    typed["spec"]["namespaceSelector"]["matchLabels"] = {"kubernetes.io/metadata.name": namespace}
    fleet.cluster.apply(typed)
    try:
        hardware = {"hardware": {"allow": {"names": ["typed", "graviton4"]}}, "spot": {"maxTrafficPercent": 0}}
        fleet.pool(namespace, "agents", placement=NO_HESITATION | hardware)
        given_up = lambda: _class_condition(fleet, "Available", "typed").get("reason") == "NoMatchingNode"  # noqa: E731
        operator.wait_for("it is given up", given_up, 60)  # and tried again now and then: there is a back-off
        operator.wait_for("the right class serves", lambda: fleet.nodes(namespace) == ["graviton"], 60)
        assert _constrained(fleet, "typed") == {}
        assert fleet.condition(namespace, "agents", "CapacityConstrained")["status"] == "False"
        assert [d["reason"] for d in fleet.status(namespace, "agents")["history"]] == ["Placed", "FellBack"]
        typed["spec"]["capacity"][0]["selector"] = instance
        fleet.cluster.apply(typed)
        operator.wait_for(
            "the cheap class serves",
            lambda: set(fleet.deployments(namespace)) == {"typed/OnDemand"} and fleet.ready(namespace, "agents"),
            60,
        )
        assert "avoided" not in fleet.cluster.get("hardwareclass", "typed")["status"]
    finally:
        fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={namespace}")
        fleet.cluster.kubectl("delete", "hardwareclass", "typed")


@pytest.mark.parametrize(
    ("pool", "where", "reason", "text"),
    [
        ("misspelt", "troubled", "NoMatchingNode", "misspelt OnDemand: no node has the labels"),
        ("forbidden", "troubled", "UntoleratedTaint", "forbidden OnDemand: its nodes have a taint"),
        ("capped", "troubled-quota", "QuotaExceeded", "exceeded quota: none"),
    ],
)
def test_what_is_no_shortage_is_called_what_it_is_and_constrains_nothing(
    fleet: Fleet, operator: OperatorProcess, troubled: str, pool: str, where: str, reason: str, text: str
) -> None:
    operator.wait_for(
        f"it says {reason}", lambda: fleet.condition(where, pool, "Progressing").get("reason") == reason, 60
    )
    progressing = fleet.condition(where, pool, "Progressing")
    assert progressing["status"] == "False"
    assert text in progressing["message"]
    assert text in fleet.condition(where, pool, "Ready")["message"]
    assert fleet.condition(where, pool, "CapacityConstrained")["status"] == "False"
    for name in ("misspelt", "forbidden"):
        assert _constrained(fleet, name) == {}
