"""Do reflector and Lease hold against a real API server?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import ApiError, Kube, Listed
from berth_operator.cluster.lease import Lease
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import LEASES, Resource

if TYPE_CHECKING:
    from conftest import Fleet
    from devcluster import ControlPlane

Manifest = dict[str, Any]

CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
WIDGETS = Resource("berth.test", "v1", "widgets", "Widget")


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

    async def pages(self, *args: Any, **kwargs: Any) -> AsyncIterator[Listed]:
        self.lists += 1
        async for page in super().pages(*args, **kwargs):
            if self.lists == 1:
                ghost = _config_map(args[1], "ghost", uid="u", resourceVersion="1")
                yield Listed([*page.items, ghost], "1")
            else:
                yield page


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


# --- Statuses -------------------------------------------------------------------------------------------------------


async def test_a_status_that_older_crds_do_not_know_says_what_to_upgrade(
    fleet: Fleet, kube: Kube, namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    version = fleet.cluster.get("bpool", "agents", f"--namespace={namespace}")["metadata"]["resourceVersion"]
    cluster = Cluster(kube, lambda: None)
    with pytest.raises(ApiError, match=r"\.status\.newer: .*: the CRDs are older than this operator") as caught:
        await cluster.write_pool_status(namespace, "agents", version, {"newer": "than the CRDs"})
    assert caught.value.status == HTTPStatus.INTERNAL_SERVER_ERROR
