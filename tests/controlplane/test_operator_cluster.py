"""Do reflector, apply, drift and Lease hold against a real API server?"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, Quantization, resolve
from berth_operator.cluster.apply import Applier
from berth_operator.cluster.attempts import Result
from berth_operator.cluster.drift import lost_fields
from berth_operator.cluster.kube import ApiError, Kube, Listed
from berth_operator.cluster.lease import Lease
from berth_operator.cluster.observe import Child, child_decoder
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import CHILDREN, DEPLOYMENTS, LEASES, POOLS, SERVICES, Resource, child_resource
from berth_operator.planner import Placement, Plan, PoolPlan, ReplicaCapacity, Snapshot
from berth_operator.render import RenderSettings, render
from devcluster import ControlPlane

Manifest = dict[str, Any]

CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
WIDGETS = Resource("berth.test", "v1", "widgets", "Widget")


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(str(control_plane.kubeconfig)) as kube:
        yield kube


async def until(what: str, condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Await a condition; fail by name."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what is awaited is another process's doing
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{what}: not so after {seconds} s")


@asynccontextmanager
async def following(reflector: Reflector[Any]) -> AsyncIterator[None]:
    task = asyncio.create_task(reflector.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _config_map(namespace: str, name: str, value: str = "1", **metadata: Any) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"follow": "yes"}} | metadata,
        "data": {"value": value},
    }


def _value(item: Manifest) -> str:
    return str(item.get("data", {}).get("value"))


# --- Reflector ------------------------------------------------------------------------------------------------------


async def test_a_reflector_follows_what_is_created_changed_and_deleted(kube: Kube, namespace: str) -> None:
    changes: list[int] = []
    reflector = Reflector(
        kube, CONFIG_MAPS, _value, namespaces=[namespace], labels="follow", on_change=lambda: changes.append(1)
    )
    await kube.apply(CONFIG_MAPS, _config_map(namespace, "before"))
    await kube.apply(CONFIG_MAPS, _config_map(namespace, "other", labels={}))
    async with following(reflector):
        await reflector.wait_synced()
        assert dict(reflector) == {(namespace, "before"): "1"}
        made = await kube.apply(CONFIG_MAPS, _config_map(namespace, "after"))
        await until("the new object is seen", lambda: (namespace, "after") in reflector)
        await kube.apply(CONFIG_MAPS, _config_map(namespace, "after", "2"))
        await until("the change is seen", lambda: reflector[namespace, "after"] == "2")
        seen = len(changes)
        await kube.apply(CONFIG_MAPS, _config_map(namespace, "after", "2", annotations={"nobody": "reads this"}))
        await kube.delete(CONFIG_MAPS, namespace, "after", uid=made["metadata"]["uid"])
        await until("the deletion is seen", lambda: (namespace, "after") not in reflector)
        assert len(changes) == seen + 1  # the annotation woke nobody
        # An object that loses the label leaves, as if deleted.
        await kube.apply(CONFIG_MAPS, _config_map(namespace, "before", labels={}))
        await until("the unlabelled object is gone", lambda: not reflector)


class Stale(Kube):
    """Says after its first list that it was taken at resource version 1, which the API server no longer knows."""

    lists = 0

    async def list(self, *args: Any, **kwargs: Any) -> Listed:
        listed = await super().list(*args, **kwargs)
        self.lists += 1
        if self.lists == 1:
            ghost = _config_map(args[1], "ghost", uid="u", resourceVersion="1")
            return Listed([*listed.items, ghost], "1")
        return listed


async def test_after_a_410_the_content_is_replaced_so_that_no_ghost_stays(
    control_plane: ControlPlane, namespace: str
) -> None:
    # A restarted API server remembers no event from before.
    control_plane.stop("kube-apiserver")
    control_plane.start("kube-apiserver")
    async with await Stale.connect(str(control_plane.kubeconfig)) as kube:
        reflector = Reflector(kube, CONFIG_MAPS, _value, namespaces=[namespace], labels="follow", backoff_s=(0.1, 0.2))
        await kube.apply(CONFIG_MAPS, _config_map(namespace, "real"))
        async with following(reflector):
            await reflector.wait_synced()
            assert (namespace, "ghost") in reflector
            await until("the list was taken again", lambda: kube.lists >= 2)
            await until("the ghost is gone", lambda: set(reflector) == {(namespace, "real")})


async def test_a_reflector_waits_for_a_crd_with_one_line(
    kube: Kube, control_plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    reflector = Reflector(kube, WIDGETS, lambda item: item["metadata"]["name"], backoff_s=(0.1, 0.2))
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.berth.test"},
        "spec": {
            "group": "berth.test",
            "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object"}},
                }
            ],
        },
    }
    caplog.set_level(logging.INFO, "berth_operator")
    async with following(reflector):
        await until("it says what is missing", lambda: "install the CRDs" in caplog.text)
        assert not reflector.synced
        control_plane.apply(crd)
        await asyncio.wait_for(reflector.wait_synced(), 20)
        control_plane.apply({"apiVersion": "berth.test/v1", "kind": "Widget", "metadata": {"name": "w"}})
        await until("the widget is seen", lambda: ("default", "w") in reflector)
        control_plane.kubectl("delete", "crd", "widgets.berth.test")
        await until("nothing of it is left", lambda: not reflector)
    assert sum("widgets.berth.test" in r.message and "install" in r.message for r in caplog.records) in (1, 2)


async def test_a_reflector_of_many_namespaces_sees_those_alone(
    kube: Kube, control_plane: ControlPlane, namespace: str
) -> None:
    reflector = Reflector(kube, CONFIG_MAPS, _value, namespaces=[namespace, "kube-public"], labels="follow")
    await kube.apply(CONFIG_MAPS, _config_map(namespace, "a"))
    await kube.apply(CONFIG_MAPS, _config_map("default", "b"))
    async with following(reflector):
        await reflector.wait_synced()
        await kube.apply(CONFIG_MAPS, _config_map("kube-public", "c"))
        await until("both are seen", lambda: set(reflector) == {(namespace, "a"), ("kube-public", "c")})
    for where, name in (("default", "b"), ("kube-public", "c")):
        control_plane.kubectl("delete", "configmap", name, f"--namespace={where}")


# --- Writing --------------------------------------------------------------------------------------------------------


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
    hardware = HardwareClass.model_validate(
        {
            "metadata": {"name": "g4"},
            "spec": {
                "vendor": "AWS",
                "chip": "Graviton4",
                "kind": "CPU",
                "architecture": "arm64",
                "cpus": 16,
                "memoryGiB": 32,
                "memoryBandwidthGBps": 228,
                "runtime": {"name": "Berth"},
                "capacity": [
                    {
                        "type": "OnDemand",
                        "usdPerHour": "0.638",
                        "selector": {"no": "node"},
                        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
                    }
                ],
            },
        }
    )
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


async def test_only_the_very_object_meant_is_deleted_or_given_a_status(kube: Kube, namespace: str) -> None:
    made = await kube.apply(CONFIG_MAPS, _config_map(namespace, "a"))
    await kube.delete(CONFIG_MAPS, namespace, "a", uid="another")
    assert await kube.get(CONFIG_MAPS, namespace, "a")
    await kube.delete(CONFIG_MAPS, namespace, "a", uid=made["metadata"]["uid"])
    assert await kube.get(CONFIG_MAPS, namespace, "a") is None


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


# --- Lease ----------------------------------------------------------------------------------------------------------


async def test_one_of_two_replicas_leads_and_the_other_takes_over_when_it_falls_silent(
    kube: Kube, namespace: str
) -> None:
    timing = {"duration_s": 4.0, "renew_every_s": 0.3}
    first, second = (Lease(kube, namespace, name, **timing) for name in ("first", "second"))
    one = asyncio.create_task(first.run())
    await until("the first leads", first.held)
    two = asyncio.create_task(second.run())
    try:
        for _ in range(10):
            assert not (first.held() and second.held())
            await asyncio.sleep(0.1)
        assert first.held()
        one.cancel()  # as if it were stopped: it renews no more
        overlap = []
        await until("the second leads", lambda: overlap.append(first.held() and second.held()) or second.held())
        assert not any(overlap)
        record = await kube.get(LEASES, namespace, "berth-operator")
        assert record and record["spec"]["holderIdentity"] == "second"
        assert record["spec"]["leaseTransitions"] == 1
    finally:
        two.cancel()
        await asyncio.gather(one, two, return_exceptions=True)


async def test_a_lease_that_is_released_is_free_at_once(kube: Kube, namespace: str) -> None:
    first, second = (Lease(kube, namespace, name, duration_s=60, renew_every_s=0.2) for name in ("first", "second"))
    one = asyncio.create_task(first.run())
    await until("the first leads", first.held)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    await first.release()
    assert not first.held()
    two = asyncio.create_task(second.run())
    await until("the second leads", second.held, 3)
    two.cancel()
    await asyncio.gather(two, return_exceptions=True)


async def test_a_leader_that_slept_through_its_lease_knows_it(kube: Kube, namespace: str) -> None:
    now = 1000.0
    lease = Lease(kube, namespace, "sleeper", clock=lambda: now)
    task = asyncio.create_task(lease.run())
    await until("it leads", lease.held)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    now += 14.0
    assert not lease.held()
