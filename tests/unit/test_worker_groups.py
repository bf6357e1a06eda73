"""Is a group of pods one worker, and does what becomes of one of its pods become of all?"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from berth_operator.api import CapacityType
from berth_operator.cluster.groups import as_seen, replicas_of
from berth_operator.cluster.neighbours import decode_autoscaler
from berth_operator.cluster.nodes import Fate, Notice
from berth_operator.cluster.observe import Child, Member, Worker, child_decoder, decode_worker
from berth_operator.cluster.resources import DEPLOYMENTS, LEADER_WORKER_SETS
from berth_operator.evacuation import with_those_that_must_stay
from berth_operator.transition import next_steps

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SET, GROUP = "agents-1234abcd", "agents-1234abcd-0"
NOTICE = Notice(Fate.INTERRUPTED, "aws-node-termination-handler/spot-itn", NOW)


def _pod(index: int, node: str | None = "n", **changes: Any) -> Worker:
    fields: dict[str, Any] = {
        "pool": "default/agents",
        "hardware_class": "p5",
        "capacity_type": CapacityType.SPOT,
        "node": node and f"{node}{index}",
        "ready": True,
        "unschedulable": node is None,
        "deleting": False,
        "name": GROUP if index == 0 else f"{GROUP}-{index}",
        "placement": "1234abcd",
        "traffic": index == 0,
        "member": Member(GROUP, index, 3),
    }
    return Worker(**(fields | changes))


def _group(*changed: Worker) -> list[Worker]:
    pods = {index: _pod(index) for index in range(3)}
    pods |= {pod.member.index: pod for pod in changed if pod.member}
    return list(pods.values())


def _one(pods: list[Worker]) -> Worker:
    (found,) = replicas_of(pods)
    return found


def test_a_group_is_one_worker_and_its_leader_speaks_for_it() -> None:
    found = _one(_group())
    assert (found.name, found.ready, found.traffic) == (GROUP, True, True)
    assert found.hosts == ("n0", "n1", "n2")


def test_pods_of_deployments_stay_what_they_are() -> None:
    alone = replace(_pod(0), member=None)
    assert replicas_of([alone, *_group()])[0] is alone


def test_a_group_has_a_node_once_all_of_its_pods_have_one() -> None:
    assert _one(_group()).node == "n0"
    waiting = _one(_group(_pod(2, None)))
    assert (waiting.node, waiting.unschedulable) == (None, True)
    assert _one(_group()[:2]).node is None, "the third pod has not been made yet"


def test_a_group_is_ready_once_all_of_its_pods_are() -> None:
    """Else the group that it stands in for is ended while it cannot serve."""
    for index in range(3):
        assert not _one(_group(_pod(index, ready=False))).ready
    assert not _one(_group()[:2]).ready, "the third pod has not been made yet"


def test_a_group_without_its_leader_is_none_yet() -> None:
    assert replicas_of(_group()[1:]) == ()


@pytest.mark.parametrize(
    "change", [{"traffic": False}, {"deleting": True}, {"ready": False}, {"pool": "default/other"}]
)
def test_a_set_that_has_not_seen_the_end_of_a_group_is_not_believed(change: dict[str, Any]) -> None:
    """Else it would shrink, and give up its last group, while the ended one comes again."""
    stale = Child(LEADER_WORKER_SETS, "default", SET, "uid", "agents", None, "", "", replicas=2, ready_replicas=2)
    stale = replace(stale, placement="1234abcd")
    stays = replace(_pod(0), member=Member(f"{SET}-1", 0, 1))
    assert [c.ready_replicas for c in as_seen([stale], [_pod(0), stays])] == [2]
    assert [c.ready_replicas for c in as_seen([stale], [replace(_pod(0), **change), stays])] == [1]
    deployment = replace(stale, resource=DEPLOYMENTS)
    assert as_seen([deployment, stale], [])[0] is deployment


def test_a_group_leaves_with_the_first_of_its_nodes() -> None:
    assert _one(_group(_pod(1, notice=NOTICE))).notice == NOTICE
    assert _one(_group(_pod(1, deleting=True))).deleting


def test_groups_of_one_name_in_two_namespaces_are_two() -> None:
    other = [replace(pod, pool="other/agents") for pod in _group()]
    assert {w.namespace for w in replicas_of([*_group(), *other])} == {"default", "other"}


def test_the_labels_that_its_controller_gives_tell_a_pods_place_in_a_group() -> None:
    prefix = "leaderworkerset.sigs.k8s.io"
    labels = {"berth.dev/pool": "agents", "berth.dev/capacity-type": "Spot", f"{prefix}/name": SET}
    labels |= {f"{prefix}/group-index": "0", f"{prefix}/worker-index": "2"}
    item = {
        "metadata": {
            "name": f"{GROUP}-2",
            "namespace": "default",
            "labels": labels,
            "annotations": {f"{prefix}/size": "3"},
        }
    }
    found = decode_worker(item)
    assert found is not None
    assert found.member == Member(GROUP, 2, 3)


def test_a_leader_worker_set_is_read_as_a_deployment_is() -> None:
    item = {
        "metadata": {"name": SET, "namespace": "default", "uid": "u", "generation": 4, "labels": {}},
        "spec": {"replicas": 2, "leaderWorkerTemplate": {"size": 3}},
        "status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 1, "observedGeneration": 4},
    }
    found = child_decoder(LEADER_WORKER_SETS)(item)
    assert (found.replicas, found.ready_replicas, found.nodes_per_replica) == (2, 2, 3)
    assert (found.rolled_out, found.old_replicas) == (False, 2)


def test_an_autoscaler_that_aims_at_a_leader_worker_set_is_seen() -> None:
    target = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": SET}
    item = {"metadata": {"name": "hpa", "namespace": "default"}, "spec": {"scaleTargetRef": target}}
    found = decode_autoscaler(item)
    assert found is not None
    assert (found.kind, found.target) == ("LeaderWorkerSet", SET)


# --- Who shrinks --------------------------------------------------------------------------------------------------


@pytest.fixture
def live() -> Callable[..., Child]:
    def make(**changes: Any) -> Child:
        fields: dict[str, Any] = {
            "resource": LEADER_WORKER_SETS,
            "namespace": "default",
            "name": SET,
            "uid": "u",
            "pool": "agents",
            "owner_uid": "p",
            "render_hash": "",
            "managed_fields": "",
            "placement": "1234abcd",
            "replicas": 3,
            "ready_replicas": 3,
        }
        return Child(**(fields | changes))

    return make


def _wanted(replicas: int, kind: str = "LeaderWorkerSet") -> dict[str, Any]:
    return {"kind": kind, "metadata": {"namespace": "default", "name": SET}, "spec": {"replicas": replicas}}


def test_a_leader_worker_set_gives_up_its_last_groups_only_while_all_are_ready(live: Callable[..., Child]) -> None:
    waits = next_steps([_wanted(2)], [live(ready_replicas=2)])
    assert not waits.apply
    assert "the last ones go first" in waits.waiting[0]
    assert waits.put_off == (SET,)
    assert next_steps([_wanted(2)], [live()]).apply
    assert next_steps([_wanted(2)], [live(ready_replicas=0)]).apply, "nothing is lost"
    assert next_steps([_wanted(4)], [live(ready_replicas=2)]).apply, "growing never waits"
    deployment = live(resource=DEPLOYMENTS, ready_replicas=2)
    assert next_steps([_wanted(2, "Deployment")], [deployment]).apply, "a Deployment ends those that are not ready"


def test_a_stand_in_stays_until_the_group_that_it_stands_for_is_ready_again(live: Callable[..., Child]) -> None:
    starting, ready = live(surge=1, ready_replicas=2), live(surge=1)
    assert with_those_that_must_stay({}, [starting]) == {"default/agents": {"1234abcd": 1}}
    assert with_those_that_must_stay({}, [ready]) == {}
    more = {"default/agents": {"1234abcd": 2}}
    assert with_those_that_must_stay(more, [starting]) == more
    deployment = live(resource=DEPLOYMENTS, surge=1, ready_replicas=2)
    assert with_those_that_must_stay({}, [deployment]) == {}, "a ReplicaSet ends what is not ready first"


def test_when_it_was_placed_is_when_its_last_pod_was() -> None:
    pods = [replace(pod, scheduled_at=NOW + timedelta(seconds=i)) for i, pod in enumerate(_group())]
    assert _one(pods).scheduled_at == NOW + timedelta(seconds=2)
