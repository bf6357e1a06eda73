"""Is what we read from raw objects right, and is one bad object kept from the others?"""

from typing import Any

import pytest
from berth_operator.api import HardwareClass, InferencePool
from berth_operator.cluster.observe import (
    Invalid,
    child_decoder,
    decode_hardware_class,
    decode_pool,
    decode_worker,
)
from berth_operator.cluster.resources import DEPLOYMENTS

Manifest = dict[str, Any]


def _pool(status: Manifest | None = None, **spec: Any) -> Manifest:
    base = {
        "model": {"name": "smollm2-135m-instruct"},
        "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "4"}},
    }
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "agents", "namespace": "default", "uid": "u", "generation": 7},
        "spec": base | spec,
        "status": status or {},
    }


def test_a_good_pool_is_a_pool() -> None:
    pool = decode_pool(_pool())
    assert isinstance(pool, InferencePool)
    assert pool.key == "default/agents"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"placement": {"disruption": {"cooldown": "soon"}}},
            "spec.placement.disruption.cooldown: 'soon' is not a duration: write a string such as"
            ' "850ms", "15s", "10m" or "1h30m"',
        ),
        ({"priority": 7_000_000}, "spec.priority: found 7000000: input should be less than or equal to 1000000"),
        ({"model": {}}, "spec.model.name: is required: set it"),
        (
            {"scaling": {"mode": "Guess"}},
            "spec.scaling.mode: found \"Guess\": input should be 'Declared' or 'Observed'",
        ),
    ],
)
def test_a_bad_pool_says_field_value_and_remedy(spec: Manifest, says: str) -> None:
    bad = decode_pool(_pool(**spec))
    assert isinstance(bad, Invalid)
    assert bad.message == says
    assert (bad.key, bad.generation, bad.uid) == ("default/agents", 7, "u")


def test_many_problems_are_shown_as_three_and_a_count() -> None:
    bad = decode_pool(_pool(priority="x", suspend="x", model={}, budget={"maxUsdPerHour": 3}, worker=7))
    assert isinstance(bad, Invalid)
    assert bad.message.endswith("; and 2 more")


def test_a_bad_pool_keeps_what_its_status_says() -> None:
    bad = decode_pool(_pool(status={"ready": "1/2"}, priority="x"))
    assert isinstance(bad, Invalid)
    assert bad.status.ready == "1/2"


def test_a_status_that_does_not_parse_does_not_make_a_pool_bad() -> None:
    pool = decode_pool(_pool(status={"conditions": "none"}))
    assert isinstance(pool, InferencePool)
    assert pool.status.conditions is None


def test_a_bad_hardware_class_is_isolated_too(make_class: Any) -> None:
    good = make_class().to_api()
    good["metadata"] |= {"uid": "u"}
    assert isinstance(decode_hardware_class(good), HardwareClass)
    bad = decode_hardware_class(good | {"spec": good["spec"] | {"cpus": 0}})
    assert isinstance(bad, Invalid)
    assert bad.message == "spec.cpus: found 0: input should be greater than or equal to 1"


def _deployment(**status: Any) -> Manifest:
    return {
        "metadata": {
            "name": "agents-1",
            "namespace": "default",
            "uid": "u1",
            "generation": 2,
            "labels": {
                "berth.dev/pool": "agents",
                "berth.dev/hardware-class": "g4",
                "berth.dev/capacity-type": "Spot",
            },
            "annotations": {"berth.dev/render-hash": "abc"},
            "ownerReferences": [{"uid": "other"}, {"uid": "owner", "controller": True}],
            "managedFields": [
                {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:a": {}}},
                {"manager": "berth-operator", "operation": "Update", "fieldsV1": {"f:b": {}}},
                {"manager": "berth-operator", "operation": "Apply", "subresource": "status", "fieldsV1": {"f:c": {}}},
                {"manager": "berth-operator", "operation": "Apply", "fieldsV1": {"f:spec": {}}},
            ],
        },
        "spec": {"replicas": 2},
        "status": {"observedGeneration": 2, "updatedReplicas": 2, "readyReplicas": 1} | status,
    }


def test_a_deployment_is_read_with_its_owner_hash_and_our_fields() -> None:
    child = child_decoder(DEPLOYMENTS)(_deployment())
    assert (child.pool, child.owner_uid, child.render_hash, child.managed_fields) == (
        "agents",
        "owner",
        "abc",
        '{"f:spec":{}}',
    )
    assert (child.replicas, child.ready_replicas, child.rolled_out) == (2, 1, True)


@pytest.mark.parametrize("status", [{"observedGeneration": 1}, {"updatedReplicas": 1}])
def test_a_deployment_in_the_middle_of_a_rollout_is_not_rolled_out(status: Manifest) -> None:
    assert not child_decoder(DEPLOYMENTS)(_deployment(**status)).rolled_out


def _pod(phase: str = "Running", **conditions: Manifest) -> Manifest:
    return {
        "metadata": {
            "name": "p",
            "namespace": "default",
            "labels": {
                "berth.dev/pool": "agents",
                "berth.dev/hardware-class": "g4",
                "berth.dev/capacity-type": "OnDemand",
            },
        },
        "spec": {"nodeName": "n"},
        "status": {"phase": phase, "conditions": [{"type": t, **c} for t, c in conditions.items()]},
    }


@pytest.mark.parametrize(
    ("pod", "state"),
    [
        (_pod(Ready={"status": "True"}), "Ready"),
        (_pod(Ready={"status": "False"}), "Starting"),
        (_pod("Pending"), "Starting"),
        (_pod("Pending", PodScheduled={"status": "False", "reason": "Unschedulable"}), "Unschedulable"),
    ],
)
def test_a_worker_has_one_state(pod: Manifest, state: str) -> None:
    worker = decode_worker(pod)
    assert worker is not None
    assert worker.state == state


def test_a_pod_that_has_ended_is_no_worker() -> None:
    assert decode_worker(_pod("Failed")) is None
