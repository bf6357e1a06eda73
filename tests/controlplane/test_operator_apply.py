"""Is what we write right: nothing of others taken, everything of ours given back, nothing written too late?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, Quantization, resolve
from berth_operator.cluster.apply import Applier
from berth_operator.cluster.attempts import Result
from berth_operator.cluster.drift import lost_fields
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.observe import Child, child_decoder
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import CHILDREN, DEPLOYMENTS, POOLS, SERVICES, Resource, child_resource
from berth_operator.planner import Placement, Plan, PoolPlan, ReplicaCapacity, Snapshot
from berth_operator.render import RenderSettings, render
from devcluster import graviton4

if TYPE_CHECKING:
    from devcluster import ControlPlane

Manifest = dict[str, Any]


@pytest.fixture
def rendered(operator_kubeconfig: Any, control_plane: ControlPlane, namespace: str) -> list[Manifest]:
    """The children of a pool that exists, as the operator renders them."""
    body = {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "agents", "namespace": namespace},
        "spec": {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "2"}},
            "placement": {"mode": "Recommend"},
            "worker": {
                "labels": {"team": "a"},
                "annotations": {"note": "b"},
                "priorityClassName": "system-node-critical",
            },
        },
    }
    control_plane.apply(body)
    pool = InferencePool.model_validate(control_plane.get("bpool", "agents", f"--namespace={namespace}"))
    tolerations = [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
    capacity = {"type": "OnDemand", "usdPerHour": "0.638", "selector": {"no": "node"}, "tolerations": tolerations}
    hardware = HardwareClass.model_validate(graviton4("g4", capacity))
    placement = Placement(
        pool=pool.key,
        hardware_class="g4",
        capacity_type=CapacityType.ON_DEMAND,
        replicas=2,
        nodes=2,
        usd_per_hour=0,  # type: ignore[arg-type]
        watts=None,
        traffic_percent=100,
        quantization=Quantization.INT8,
        capacity=ReplicaCapacity(3.0, 12, 0.4, 0.05, 10.0, 100_000, estimated=True),
        resources=None,
        replicas_per_node=1,
    )
    effective = resolve(pool.spec.model_copy(update={"placement": None}))
    planned = Plan({pool.key: PoolPlan(pool.key, effective, placements=(placement,))}, 0.0, "Optimal")
    return render(planned, Snapshot(now=None, pools=(pool,), hardware_classes=(hardware,)), RenderSettings())  # type: ignore[arg-type]


def _managed_fields(item: Manifest) -> str:
    return child_decoder(child_resource(item))(item).managed_fields


async def test_what_the_api_server_fills_in_is_no_difference(kube: Kube, rendered: list[Manifest]) -> None:
    assert {m["kind"] for m in rendered} == {resource.kind for resource in CHILDREN}
    for manifest in rendered:
        live = await kube.apply(child_resource(manifest), manifest)
        assert lost_fields(manifest, _managed_fields(live)) == frozenset(), manifest["kind"]


def _edits(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, list[Manifest]]]:
    """JSON patches that each change or remove one value of a live object, for every value that we render."""
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _edits(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _edits(value, (*path, index))
    if not path or (isinstance(node, dict | list) and not node):
        return
    yield f"remove {pointer}", [{"op": "remove", "path": pointer}]
    if isinstance(node, bool):
        yield f"change {pointer}", [{"op": "replace", "path": pointer, "value": not node}]
    elif isinstance(node, int):
        yield f"change {pointer}", [{"op": "replace", "path": pointer, "value": node + 1}]
    elif isinstance(node, str):
        yield f"change {pointer}", [{"op": "replace", "path": pointer, "value": node + "0"}]


def _ours(item: Manifest, manifest: Manifest) -> Manifest:
    """Spec and the metadata that we render; the revision that the Deployment's controller notes is not ours."""
    metadata = item["metadata"]
    annotations = {k: metadata.get("annotations", {}).get(k) for k in manifest["metadata"]["annotations"]}
    return {"spec": item["spec"], "annotations": annotations} | {
        k: metadata.get(k) for k in ("labels", "ownerReferences")
    }


async def test_whatever_a_user_changes_of_what_we_render_is_seen(kube: Kube, rendered: list[Manifest]) -> None:
    """Every value of every child, changed and removed by a dry run: whatever the API server takes is noticed."""
    taken, refused, unseen = 0, 0, []
    for manifest in rendered:
        resource, metadata = child_resource(manifest), manifest["metadata"]
        live = await kube.apply(resource, manifest)
        body = {k: v for k, v in manifest.items() if k not in ("apiVersion", "kind")}
        body["metadata"] = {k: v for k, v in metadata.items() if k not in ("name", "namespace")}
        for what, patch in _edits(body):
            try:
                edited = await kube.request(
                    "PATCH",
                    resource.path(metadata["namespace"], metadata["name"]),
                    query={"dryRun": "All", "fieldManager": "somebody"},
                    body=patch,  # type: ignore[arg-type]
                    content_type="application/json-patch+json",
                )
            except ApiError as error:
                assert error.status in (400, 422), f"{what}: {error}"
                refused += 1
                continue
            if _ours(edited, manifest) == _ours(live, manifest):
                continue  # the API server filled in the very value that was removed
            taken += 1
            if not lost_fields(manifest, _managed_fields(edited)):
                unseen.append(f"{manifest['kind']}: {what}")
    assert unseen == []
    assert taken > 100, f"{taken} edits taken, {refused} refused"


async def test_applying_again_gives_every_field_back_and_keeps_what_is_the_users(
    kube: Kube, rendered: list[Manifest]
) -> None:
    deployment = next(m for m in rendered if m["kind"] == "Deployment")
    namespace, name = deployment["metadata"]["namespace"], deployment["metadata"]["name"]
    first = await kube.apply(DEPLOYMENTS, deployment)
    await kube.request(
        "PATCH",
        DEPLOYMENTS.path(namespace, name),
        body={
            "metadata": {"labels": {"theirs": "yes", "berth.dev/pool": "stolen"}, "annotations": {"theirs": "too"}},
            "spec": {"replicas": 9, "minReadySeconds": 7, "template": {"spec": {"hostname": "theirs"}}},
        },
        content_type="application/merge-patch+json",
    )
    after = await kube.apply(DEPLOYMENTS, deployment)
    assert after["spec"]["replicas"] == 2
    assert after["metadata"]["labels"] == first["metadata"]["labels"] | {"theirs": "yes"}
    assert after["metadata"]["annotations"]["theirs"] == "too"
    assert after["spec"]["minReadySeconds"] == 7
    assert after["spec"]["template"]["spec"]["hostname"] == "theirs"


async def test_an_object_of_somebody_else_is_never_taken_over(
    kube: Kube, rendered: list[Manifest], namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "agents", "namespace": namespace},
        "spec": {"ports": [{"port": 1}]},
    }
    await kube.request("POST", SERVICES.path(namespace), body=theirs)
    live = {resource: Reflector(kube, resource, child_decoder(resource)) for resource in CHILDREN}
    results = await Applier(kube, live).write(rendered, [])
    assert results == {Result.WRITTEN: 3, Result.FAILED: 1}
    assert "not made by Berth: give the pool another name or remove that object" in caplog.text
    there = await kube.get(SERVICES, namespace, "agents")
    assert there and there["spec"]["ports"][0]["port"] == 1


async def test_orphans_of_a_deleted_pool_are_adopted(kube: Kube, rendered: list[Manifest], namespace: str) -> None:
    service = next(m for m in rendered if m["kind"] == "Service")
    orphan = copy.deepcopy(service)
    del orphan["metadata"]["ownerReferences"]
    await kube.apply(SERVICES, orphan)
    live: dict[Resource, Reflector[Child]] = {SERVICES: Reflector(kube, SERVICES, child_decoder(SERVICES))}
    assert await Applier(kube, live).write([service], []) == {Result.WRITTEN: 1}
    there = await kube.get(SERVICES, namespace, service["metadata"]["name"])
    assert there and there["metadata"]["ownerReferences"][0]["name"] == "agents"


async def test_a_write_is_known_before_the_watch_brings_it(kube: Kube, rendered: list[Manifest]) -> None:
    live = {resource: Reflector(kube, resource, child_decoder(resource)) for resource in CHILDREN}  # not running
    applier = Applier(kube, live)
    assert await applier.write(rendered, []) == {Result.WRITTEN: 4}
    assert await applier.write(rendered, []) == {}


async def test_only_the_very_object_meant_is_deleted(kube: Kube, rendered: list[Manifest], namespace: str) -> None:
    service = next(m for m in rendered if m["kind"] == "Service")
    made = await kube.apply(SERVICES, service)
    name = made["metadata"]["name"]
    await kube.delete(SERVICES, namespace, name, uid="another")
    assert await kube.get(SERVICES, namespace, name)
    await kube.delete(SERVICES, namespace, name, uid=made["metadata"]["uid"])
    assert await kube.get(SERVICES, namespace, name) is None


async def test_a_status_computed_from_an_older_pool_is_refused(
    kube: Kube, rendered: list[Manifest], namespace: str
) -> None:
    seen = await kube.get(POOLS, namespace, "agents")
    assert seen
    await kube.request(
        "PATCH",
        POOLS.path(namespace, "agents"),
        body={"metadata": {"labels": {"changed": "since"}}},
        content_type="application/merge-patch+json",
    )
    stale = {
        "apiVersion": POOLS.api_version,
        "kind": POOLS.kind,
        "metadata": {k: seen["metadata"][k] for k in ("name", "namespace", "resourceVersion")},
        "status": {"ready": "9/9"},
    }
    with pytest.raises(ApiError) as caught:
        await kube.apply(POOLS, stale, subresource="status")
    assert caught.value.status == 409


async def _followed(kube: Kube, manifest: Manifest) -> tuple[dict[Resource, Reflector[Child]], Child]:
    """A child as a replica last saw it, whose watch brings nothing more: it was stopped."""
    resource = child_resource(manifest)
    live: dict[Resource, Reflector[Child]] = {resource: Reflector(kube, resource, child_decoder(resource))}
    made = await kube.apply(resource, manifest)
    live[resource].note(made)
    return live, child_decoder(resource)(made)


def _with_replicas(deployment: Manifest, replicas: int) -> Manifest:
    changed = copy.deepcopy(deployment)
    changed["spec"]["replicas"] = replicas
    changed["metadata"]["annotations"]["berth.dev/render-hash"] = f"of {replicas} replicas"
    return changed


async def test_a_late_write_after_another_leaders_is_refused(
    kube: Kube, rendered: list[Manifest], namespace: str
) -> None:
    deployment = next(m for m in rendered if m["kind"] == "Deployment")
    live, child = await _followed(kube, deployment)
    await kube.apply(DEPLOYMENTS, _with_replicas(deployment, 5))  # by the new leader
    applier = Applier(kube, live)
    assert await applier.write([_with_replicas(deployment, 1)], []) == {Result.HELD: 1}
    assert await applier.write([], [child]) == {Result.HELD: 1}
    there = await kube.get(DEPLOYMENTS, namespace, child.name)
    assert there and there["spec"]["replicas"] == 5


async def test_what_only_controllers_and_users_of_other_fields_changed_stops_no_write(
    kube: Kube, rendered: list[Manifest], namespace: str
) -> None:
    deployment = next(m for m in rendered if m["kind"] == "Deployment")
    live, child = await _followed(kube, deployment)
    note = {"metadata": {"annotations": {"theirs": "too"}}}
    content_type = "application/merge-patch+json"
    await kube.request("PATCH", DEPLOYMENTS.path(namespace, child.name), body=note, content_type=content_type)
    assert await Applier(kube, live).write([_with_replicas(deployment, 1)], []) == {Result.WRITTEN: 1}
    await kube.request("PATCH", DEPLOYMENTS.path(namespace, child.name), body=note, content_type=content_type)
    (now,) = live[DEPLOYMENTS].values()
    assert await Applier(kube, live).write([], [now]) == {Result.WRITTEN: 1}
    assert await kube.get(DEPLOYMENTS, namespace, child.name) is None
